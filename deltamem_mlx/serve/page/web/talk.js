// The open memory: what is said to it, and what it is then.

import { Gone, Refusal } from "./api.js";
import { said } from "./kept.js";
import { sized } from "./memories.js";

const LEFT = "The page was left before the answer was complete.";
const LOST = "The server does not have it any more. A message begins it anew.";
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * One memory as this tab has it open.
 *
 * `entries` are the transcript's, `undone` those that were taken back, turn by turn, `stats` numbers about it (null: there is none yet), `state` the
 * same with its states (undefined: not known yet), `dropped` whether the next message is to begin a new context.
 */
export class Talk {
  #api;
  #changed;
  #heard;
  #abort = null;
  #looking = Promise.resolve();

  /** @param on `changed()` after every change; `heard(entry)` with each piece of an answer */
  constructor(api, name, on) {
    this.#api = api;
    this.name = name;
    this.#changed = on.changed;
    this.#heard = on.heard;
    Object.assign(this, said.of(name), { state: undefined });
    for (const entry of this.entries) {
      if (entry.is === "running") fail(entry, "gone", new Error(LEFT));
    }
  }

  get running() {
    return this.#abort !== null;
  }

  /** How many turns were taken back that can be put back. */
  get redoable() {
    return this.stats ? this.stats.redo_turns : this.undone.length;
  }

  /** The words of a turn by its number, as far as they are known here. */
  saidOf(turn) {
    return this.entries.findLast((entry) => entry.turn === turn)?.said ?? null;
  }

  /** Say something. Errors become the entry's; `Gone` is thrown as well. */
  async say(text) {
    this.#abort = new AbortController();
    await this.#looking.catch(() => {});
    const entry = { said: text, answer: "", thought: "", is: "running" };
    this.entries.push(entry);
    this.#changed();
    const before = this.stats;
    try {
      const usage = await this.#api.chat(this.#request(text), (delta) => {
        entry.answer += delta.content ?? "";
        entry.thought += delta.reasoning ?? "";
        this.#heard(entry);
      });
      this.#keep(entry, usage?.memory);
    } catch (error) {
      await this.#failed(entry, error, before);
    }
    this.#abort = null;
    this.#changed();
    if (entry.is === "gone") throw new Gone();
  }

  stop() {
    this.#abort?.abort();
  }

  #request(text) {
    const memory = { session: this.name, one_chat: false, strengths: true, keep_partial: true };
    if (this.dropped) memory.context = "drop";
    return { text, memory, signal: this.#abort.signal };
  }

  #keep(entry, made) {
    entry.is = "kept";
    if (!made) return; // a client's task: it is answered, and never written
    const back = made.turns_taken_back;
    if (back) this.#takenBack(back, entry);
    const before = (this.stats?.tokens_written ?? 0) + made.tokens_written;
    if (!back && this.stats && before !== made.total_tokens_written) {
      this.entries.splice(-1, 0, { note: "Before this it was changed elsewhere." });
    }
    if (made.did_you_mean) {
      this.entries.splice(-1, 0, { note: `This memory is new. Did you mean ${made.did_you_mean}?` });
    }
    Object.assign(entry, { turn: made.turns, written: made.tokens_written });
    const [of, ofAnswer] = (made.strengths ?? []).slice(-2);
    if (ofAnswer) entry.strengths = { said: of.pieces, answer: ofAnswer.pieces };
    this.dropped = false;
    this.undone = [];
    this.stats = {
      ...this.stats,
      redo_turns: 0,
      turns: made.turns,
      tokens_written: made.total_tokens_written,
      context_tokens: made.context_tokens,
    };
  }

  async #failed(entry, error, before) {
    if (error instanceof Gone || error instanceof Refusal) {
      fail(entry, error instanceof Gone ? "gone" : "refused", error);
      return;
    }
    if (error.name !== "AbortError") throw error;
    entry.is = "stopped";
    entry.why = "Stopped; nothing of it was kept.";
    for (let tries = 0; tries < 6 && entry.answer; tries += 1) {
      const now = await this.#api.memory(this.name).catch(() => null);
      if (now && now.tokens_written > (before?.tokens_written ?? 0)) {
        Object.assign(entry, { is: "kept", turn: now.turns, why: "Stopped; so far it is kept." });
        entry.written = now.tokens_written - (before?.tokens_written ?? 0);
        this.dropped = false;
        return;
      }
      await pause(250);
    }
  }

  /** Leave a failed turn out of the transcript; returns what was said. */
  leaveOut(entry) {
    this.entries = this.entries.filter((other) => other !== entry);
    this.#changed();
    return entry.said;
  }

  /** The next answer is to see none of what was said. */
  drop() {
    this.dropped = true;
    this.#cut("The context is dropped. From here on it knows what is in the memory.");
    this.#changed();
  }

  #cut(note) {
    if (this.entries.length) this.entries.push({ note, cut: true });
  }

  /** Take back the last turn; returns what was said in it, as far as that is known here. */
  async undo() {
    const before = this.stats;
    this.stats = await this.#api.undo(this.name);
    const last = this.entries.findLastIndex((entry) => entry.is === "kept");
    const known = last >= 0 && this.entries[last].turn === before.turns;
    const text = known ? this.entries[last].said : null;
    this.undone.push({ entries: known ? this.entries.splice(last) : [], dropped: this.dropped });
    this.dropped = Boolean(this.entries.at(-1)?.cut);
    const tokens = before.tokens_written - this.stats.tokens_written;
    await this.look({ ours: true });
    return { text, tokens };
  }

  /** Put back all that was taken back; returns how much that is. */
  async redo() {
    const turns = this.redoable;
    const before = this.stats?.tokens_written ?? 0;
    const undone = this.undone.splice(0).reverse();
    this.stats = await this.#api.redo(this.name);
    for (const { entries } of undone) this.entries.push(...entries);
    if (undone.length) this.dropped = undone.at(-1).dropped;
    const unknown = turns - undone.filter(({ entries }) => entries.length).length;
    if (unknown) this.entries.push({ note: `Put back without its words: ${counted(unknown)}.` });
    const tokens = this.stats.tokens_written - before;
    await this.look({ ours: true });
    return { turns, tokens, texts: undone.flatMap(({ entries }) => entries.map((entry) => entry.said)) };
  }

  #takenBack(count, newest) {
    for (let left = count; left > 0; left -= 1) {
      const last = this.entries.findLastIndex((entry) => entry.is === "kept" && entry !== newest);
      if (last >= 0) this.entries.splice(last, 1);
    }
    const turns = count === 1 ? "the turn before" : `the ${count} turns before`;
    this.entries.splice(-1, 0, { note: `Asked again: ${turns} was taken back for it.` });
  }

  /** A copy of this, as another tab's memory would be: its words, none of its context. */
  forked(to) {
    const note = `Forked from ${this.name}, without its context.`;
    const entries = [...this.entries, { note, cut: true }];
    said.keep(to, { entries, undone: [], stats: null, dropped: false });
  }

  /**
   * See what the memory is now, and note what others did to it.
   *
   * @param ours what changed was done here
   */
  look({ ours = false } = {}) {
    if (!this.running) this.#looking = this.#look(ours);
    return this.#looking;
  }

  async #look(ours) {
    const before = this.stats;
    this.state = await this.#api.state(this.name);
    this.stats = this.state && { ...this.state, layers: undefined, history: undefined };
    const settled = this.#settleGone(before);
    if (!ours && !settled) this.#noteChanges(before);
    const lost = before?.context_tokens > 0 && this.stats && !this.stats.context_tokens;
    if (lost && !ours && !this.dropped) {
      this.#cut("The server has lost the context. From here on it knows what is in the memory.");
    }
    this.#changed();
  }

  #noteChanges(before) {
    const { stats, entries } = this;
    if (before === null) {
      const unknown = stats?.turns && !entries.some((entry) => entry.is === "kept");
      if (unknown) {
        const told = sized(stats.turns, stats.tokens_written);
        entries.push({ note: `It was told ${told} before. Texts are not kept.` });
      }
    } else if (stats === null) {
      if (before.turns) entries.push({ note: LOST, cut: true });
    } else if (stats.turns !== before.turns || stats.tokens_written !== before.tokens_written) {
      entries.push({ note: `It was changed elsewhere: ${sized(stats.turns, stats.tokens_written)} now.` });
    }
  }

  /** A turn whose answer did not come to its end may have been kept; returns whether it was. */
  #settleGone(before) {
    const last = this.entries.at(-1);
    if (last?.is !== "gone" || !this.stats || this.stats.turns !== (before?.turns ?? 0) + 1) return false;
    Object.assign(last, { is: "kept", turn: this.stats.turns });
    last.written = this.stats.tokens_written - (before?.tokens_written ?? 0);
    last.why = "The connection broke, but the memory has this turn.";
    return true;
  }
}

export function counted(turns) {
  return turns === 1 ? "1 turn" : `${turns} turns`;
}

function fail(entry, is, error) {
  Object.assign(entry, { is, why: error.message });
}
