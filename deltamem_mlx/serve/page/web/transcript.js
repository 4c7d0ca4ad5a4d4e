// What was said, turn by turn, and what happened between.

import { shade, strongest, words } from "./words.js";

const MADE_OF = 3;

/**
 * The transcript of one memory.
 *
 * An entry is a turn `{ said, answer, thought, is, why, turn, written, strengths }`, where `is` is
 * `running`, `kept`, `stopped`, `refused` or `gone`; or a note `{ note, cut }`, where `cut` says that
 * what stands before it is out of the model's sight.
 */
export class Transcript {
  #list;
  #scroll;
  #actions;
  #elements = new Map();
  #filled = new WeakMap();
  #frame = 0;
  #follows = true; // the end is in sight, and is to stay there

  /** @param actions what buttons of a failed turn do: `retry(entry)` and `edit(entry)` */
  constructor(list, scroll, actions) {
    this.#list = list;
    this.#scroll = scroll;
    this.#actions = actions;
    scroll.addEventListener("scroll", () => (this.#follows = this.#atEnd()));
    new ResizeObserver(() => this.#follows && this.toEnd()).observe(scroll);
  }

  /** Show these entries; those that are there already stay the elements that they are. */
  show(entries) {
    const top = Math.max(0, ...entries.flatMap((entry) => strengthsIn(entry)));
    const cut = entries.findLastIndex((entry) => entry.cut);
    this.#list.style.setProperty("--top", top || 1);
    const shown = entries.map((entry, i) => {
      const element = this.#elements.get(entry) ?? this.#element(entry);
      this.#elements.set(entry, element);
      if (!entry.note) this.#fill(element, entry, top || 1);
      element.classList.toggle("unseen-by-model", i < cut);
      return element;
    });
    for (const entry of this.#elements.keys()) {
      if (!entries.includes(entry)) this.#elements.delete(entry);
    }
    const same = shown.length === this.#list.children.length;
    if (!same || shown.some((element, i) => element !== this.#list.children[i])) {
      this.#list.replaceChildren(...shown);
    }
    this.#list.setAttribute("aria-busy", String(entries.some((entry) => entry.is === "running")));
    if (this.#follows) this.toEnd();
  }

  /** More of an answer that is being said; shown once a frame, however fast it comes. */
  hear(entry) {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      const element = this.#elements.get(entry);
      if (entry.is !== "running" || !element) return;
      part(element, "answer").textContent = entry.answer;
      thoughtOf(element, entry);
      if (this.#follows) this.toEnd();
    });
  }

  toEnd() {
    this.#follows = true;
    this.#scroll.scrollTop = this.#scroll.scrollHeight;
  }

  #atEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroll;
    return scrollHeight - scrollTop - clientHeight < 80;
  }

  #element(entry) {
    if (entry.note) return make("p", "note", entry.note);
    const element = make("article", "turn");
    const thought = make("details", "thought");
    thought.append(make("summary", "", "What it thought"), make("div", "text"));
    element.append(
      line("said", "You: "),
      thought,
      line("answer", "Answer: "),
      make("p", "made"),
      make("div", "failed"),
    );
    return element;
  }

  /** Say what a turn is now; one that is as it was is left alone: a screen reader reads changes. */
  #fill(element, entry, top) {
    const now = JSON.stringify(entry);
    if (this.#filled.get(element) === now) return;
    this.#filled.set(element, now);
    element.dataset.is = entry.is;
    const said = words(entry.said, entry.strengths?.said);
    const answer = words(entry.answer, entry.strengths?.answer);
    shade(part(element, "said"), said, top);
    shade(part(element, "answer"), answer, top);
    thoughtOf(element, entry);
    element.querySelector(".made").textContent = madeOf(entry, [...said, ...answer]);
    const failed = element.querySelector(".failed");
    failed.replaceChildren();
    if (entry.why) failed.append(make("p", "why", entry.why));
    if (entry.is === "refused" || entry.is === "gone") {
      failed.append(
        this.#button("Try again", () => this.#actions.retry(entry)),
        this.#button("Edit", () => this.#actions.edit(entry)),
      );
    }
  }

  #button(text, act) {
    const button = make("button", "", text);
    button.type = "button";
    button.addEventListener("click", act);
    return button;
  }
}

function strengthsIn({ strengths }) {
  return [...(strengths?.said ?? []), ...(strengths?.answer ?? [])].map(([, s]) => s ?? 0);
}

function madeOf({ is, written }, found) {
  if (is === "running") return "…";
  if (is !== "kept" || written === undefined) return "";
  const most = strongest(found, MADE_OF).map(([word, s]) => `${word} ${s.toFixed(2)}`);
  return [`+${written.toLocaleString("en")} tokens`, ...most].join(" · ");
}

function thoughtOf(element, { thought }) {
  const box = element.querySelector(".thought");
  box.hidden = !thought;
  box.querySelector(".text").textContent = thought ?? "";
}

function line(kind, who) {
  const p = make("p", kind);
  p.append(make("span", "unseen", who), make("span", "text"));
  return p;
}

const part = (element, kind) => element.querySelector(`.${kind} > .text`);

export function make(tag, kind, text = "") {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  element.textContent = text;
  return element;
}
