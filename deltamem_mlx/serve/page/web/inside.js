// What the memory holds: its figures, its states, and how like it still is to what it was.

import { make } from "./transcript.js";

const MOST_LAYERS = 6;
const MOST_TURNS = 12;
const FADE = 600; // milliseconds
const $ = (id) => document.getElementById(id);
const many = (count) => count.toLocaleString("en");

export class Inside {
  #drawn = new Map(); // layer → { canvas, values }
  #limit = 1;
  #fade = 0;
  #shown; // the state that is

  constructor() {
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
  }

  /**
   * @param state as `/v1/memories/{key}/state` has it; null: there is no memory; undefined: that
   *   is not known yet
   * @param saidOf the words of a turn by its number, as far as this tab knows them
   */
  show(state, saidOf) {
    if (state === this.#shown) return;
    this.#shown = state;
    const holds = state?.tokens_written > 0;
    $("empty").hidden = holds || state === undefined;
    $("holds").hidden = !holds;
    if (!holds) {
      this.#drawn.clear();
      $("states").replaceChildren();
      return;
    }
    figures(state);
    this.#states(evenly(state.layers, MOST_LAYERS));
    earlier(state.history, saidOf);
  }

  #states(layers) {
    const entries = layers.flatMap(({ states }) => states.flat(2)).map(Math.abs);
    entries.sort((a, b) => a - b);
    this.#limit = entries[Math.floor(0.995 * (entries.length - 1))] || 1;
    const same = layers.every(({ layer }) => this.#drawn.has(layer));
    if (!same) {
      this.#drawn.clear();
      $("states").replaceChildren(...layers.map((layer) => this.#figure(layer)));
    }
    const goals = layers.map(({ layer, states, norm }) => {
      const drawn = this.#drawn.get(layer);
      drawn.canvas.setAttribute("aria-label", `State of layer ${layer}, norm ${norm.toFixed(2)}`);
      return { drawn, from: drawn.values, to: pixels(states) };
    });
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.#move(goals, calm ? 0 : FADE);
  }

  #figure({ layer, states }) {
    const canvas = document.createElement("canvas");
    canvas.width = columnsOf(states) * states[0].length;
    canvas.height = pixels(states).length / canvas.width;
    canvas.setAttribute("role", "img");
    const figure = make("figure", "state");
    figure.classList.toggle("wide", canvas.width > 1.5 * canvas.height);
    figure.append(canvas, make("figcaption", "", `layer ${layer}`));
    this.#drawn.set(layer, { canvas, values: pixels(states).map(() => 0) });
    return figure;
  }

  /** From what is drawn to what is to be, in so many milliseconds. */
  #move(goals, duration) {
    cancelAnimationFrame(this.#fade);
    const began = performance.now();
    const step = (now) => {
      const share = duration ? Math.min(1, Math.max(0, (now - began) / duration)) : 1;
      for (const { drawn, from, to } of goals) {
        drawn.values = to.map((value, i) => from[i] + share * (value - from[i]));
      }
      this.#draw();
      if (share < 1) this.#fade = requestAnimationFrame(step);
    };
    step(began);
  }

  #draw() {
    const [zero, above, below] = ["--zero", "--positive", "--negative"].map(color);
    for (const { canvas, values } of this.#drawn.values()) {
      const image = new ImageData(canvas.width, canvas.height);
      values.forEach((value, i) => {
        const share = Math.min(1, Math.abs(value) / this.#limit);
        const full = value > 0 ? above : below;
        const mixed = zero.map((channel, c) => channel + share * (full[c] - channel));
        image.data.set([...mixed, 255], 4 * i);
      });
      canvas.getContext("2d").putImageData(image, 0, 0);
    }
  }
}

function figures(state) {
  const context = state.context_tokens ? `${many(state.context_tokens)} tokens` : "empty";
  const rows = {
    Turns: many(state.turns),
    Written: `${many(state.tokens_written)} tokens`,
    Size: `${(state.bytes / 1000).toFixed(1)} KB`,
    Context: context,
  };
  const cells = Object.entries(rows).flatMap(([name, value]) => [
    make("dt", "", name),
    make("dd", "", value),
  ]);
  $("figures").replaceChildren(...cells);
}

function earlier(history, saidOf) {
  const rows = history.slice(0, MOST_TURNS).map(({ turns, similarity }) => {
    const share = Math.max(0, similarity).toFixed(2);
    const row = make("li", "");
    const bar = make("span", "bar");
    bar.setAttribute("aria-hidden", "true");
    bar.style.setProperty("--share", share);
    const text = saidOf(turns) ?? `turn ${turns}`;
    row.append(make("span", "what", text), bar, make("span", "figure", similarity.toFixed(2)));
    row.title = text;
    return row;
  });
  $("earlier").replaceChildren(...rows);
  const left = history.length - rows.length;
  $("more").textContent = left > 0 ? `and ${left} before these` : "";
}

function evenly(layers, most) {
  if (layers.length <= most) return layers;
  const step = (layers.length - 1) / (most - 1);
  return Array.from({ length: most }, (_, i) => layers[Math.round(i * step)]);
}

/** [H][r][r] as one picture, row by row: the heads beside and below each other. */
function pixels(states) {
  const columns = columnsOf(states);
  const empty = states[0].map((row) => row.map(() => 0));
  const found = [];
  for (let start = 0; start < states.length; start += columns) {
    const beside = Array.from({ length: columns }, (_, i) => states[start + i] ?? empty);
    found.push(...empty.flatMap((_, row) => beside.flatMap((state) => state[row])));
  }
  return found;
}

/** Heads beside each other, so that the picture is about twice as wide as high. */
function columnsOf(states) {
  return Math.min(states.length, Math.ceil(Math.sqrt(2 * states.length)));
}

function color(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}
