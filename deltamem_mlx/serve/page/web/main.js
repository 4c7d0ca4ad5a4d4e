// The page: what its buttons do, and what it shows of the memory that is open.

import { Api, Gone, Refusal } from "./api.js";
import { ask } from "./dialog.js";
import { Inside } from "./inside.js";
import { keys, names, said } from "./kept.js";
import { listMemories } from "./memories.js";
import { counted, Talk } from "./talk.js";
import { Transcript } from "./transcript.js";

const RETRY = 1500; // milliseconds between looks for a server that is gone
const MOST_NAME = 512;
const MOST_ROWS = 8;
const GONE = "The server does not answer. The page waits for it; nothing you wrote is lost.";
const NAMELESS = "The files of the server have no names. This one opens under the name it was begun by.";
const WIDE = { memories: "(min-width: 46rem)", inside: "(min-width: 70rem)" };
const $ = (id) => document.getElementById(id);

class Page {
  #api = new Api(keys, askKey);
  #talk = null;
  #gone = false;
  #inside = new Inside();
  #others = new BroadcastChannel("deltamem");
  #transcript = new Transcript($("turns"), $("scroll"), {
    retry: (entry) => this.#say(this.#talk.leaveOut(entry)),
    edit: (entry) => this.#edit(this.#talk.leaveOut(entry)),
  });

  async begin() {
    this.#listen();
    this.#show();
    await this.#guarded(async () => {
      $("model").textContent = await this.#api.model();
      const last = (await this.#list()).findLast((memory) => memory.session !== null);
      if (this.#talk !== null) return; // whoever is quick has opened one by now
      await this.#open(nameInAddress() ?? last?.session ?? null);
      if (this.#talk === null) $("memories").open = true;
      // Who is typing already is not interrupted.
      if (document.activeElement === document.body) $(this.#talk === null ? "name" : "message").focus();
    });
  }

  #listen() {
    on("say", "submit", () => this.#say($("message").value));
    on("open", "submit", () => this.#openByName());
    on("stop", "click", () => this.#talk.stop());
    on("drop", "click", () => this.#drop());
    on("undo", "click", () => this.#guarded(() => this.#undo()));
    on("redo", "click", () => this.#guarded(() => this.#redo()));
    on("fork", "click", () => this.#guarded(() => this.#fork()));
    on("export", "click", () => this.#guarded(() => this.#export()));
    on("delete", "click", () => this.#guarded(() => this.#delete()));
    on("import", "click", () => $("file").click());
    on("file", "change", () => this.#guarded(() => this.#import()));
    $("message").addEventListener("keydown", (event) => this.#key(event));
    $("message").addEventListener("input", () => this.#showButtons());
    addEventListener("hashchange", () => this.#guarded(() => this.#open(nameInAddress())));
    addEventListener("focus", () => this.#lookAgain());
    this.#others.addEventListener("message", () => this.#lookAgain());
    for (const [id, query] of Object.entries(WIDE)) {
      const wide = matchMedia(query);
      const fold = () => ($(id).open = wide.matches);
      wide.addEventListener("change", fold);
      fold();
    }
  }

  #key(event) {
    if (event.isComposing) return;
    if (event.key === "Escape" && this.#talk?.running) this.#talk.stop();
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      $("say").requestSubmit();
    }
  }

  /** Do something that asks the server; what it refuses is said, what it is gone for waited out. */
  async #guarded(act) {
    try {
      await act();
    } catch (error) {
      if (error instanceof Gone) await this.#waitForServer();
      else if (error instanceof Refusal) this.#tell(error.message);
      else throw error;
    }
  }

  async #waitForServer() {
    if (this.#gone) return;
    this.#gone = true;
    $("connection").textContent = GONE;
    this.#show();
    do await new Promise((resolve) => setTimeout(resolve, RETRY));
    while (!(await this.#api.isWell()));
    this.#gone = false;
    $("connection").textContent = "";
    this.#tell("The server is back.");
    await this.#guarded(async () => {
      $("model").textContent = await this.#api.model();
      await this.#talk?.look();
      await this.#list();
    });
    this.#show();
  }

  async #list() {
    const memories = await this.#api.memories();
    const open = (name, id) => this.#guarded(() => this.#openListed(name, id));
    listMemories(memories, this.#talk?.name, open);
    return memories;
  }

  async #openListed(name, id) {
    if (name !== null) return this.#open(name);
    const found = await ask({
      title: "What is it called?",
      text: NAMELESS,
      label: "Its name",
      yes: "Open",
      check: async (given) => {
        const memory = await this.#api.memory(given);
        return memory?.id === id ? "" : "This one has another name.";
      },
    });
    if (found !== null) await this.#open(found);
  }

  async #openByName() {
    const name = $("name").value.trim();
    if (!name) return;
    $("name").value = "";
    await this.#guarded(() => this.#open(name));
    $("message").focus();
  }

  /** Open a memory, which need not be there yet; null: none. */
  async #open(name) {
    if (name === (this.#talk?.name ?? null)) return;
    this.#talk?.stop();
    const shown = (talk) => ({
      changed: () => (talk() === this.#talk ? this.#show() : said.keep(name, talk())),
      heard: (entry) => talk() === this.#talk && this.#transcript.hear(entry),
    });
    const talk = name === null ? null : new Talk(this.#api, name, shown(() => talk));
    this.#talk = talk;
    this.#tell("");
    history.replaceState(null, "", name === null ? location.pathname : `#${encodeURIComponent(name)}`);
    this.#show();
    this.#transcript.toEnd();
    await talk?.look();
    await this.#list();
  }

  async #say(text) {
    if (!text.trim() || !this.#talk || this.#talk.running || this.#gone) return;
    if ($("message").value === text) $("message").value = "";
    this.#tell("");
    this.#transcript.toEnd();
    const talk = this.#talk;
    await this.#guarded(async () => {
      await talk.say(text);
      if (talk === this.#talk) await this.#changed();
    });
    if (talk === this.#talk) $("message").focus();
  }

  #edit(text) {
    $("message").value = text;
    $("message").focus();
    this.#show();
  }

  #drop() {
    this.#talk.drop();
    this.#tell("The context is dropped.");
    $("message").focus();
  }

  async #undo() {
    const { text, tokens } = await this.#talk.undo();
    this.#tell(`Took back the last turn, ${tokens.toLocaleString("en")} tokens.`);
    if (text !== null && !$("message").value) $("message").value = text;
    await this.#changed();
    $("message").focus();
  }

  async #redo() {
    const { turns, tokens, texts } = await this.#talk.redo();
    this.#tell(`Put back ${counted(turns)}, ${tokens.toLocaleString("en")} tokens.`);
    if (texts.includes($("message").value)) $("message").value = "";
    await this.#changed();
    $("message").focus();
  }

  async #fork() {
    const from = this.#talk.name;
    const to = await ask({
      title: `Fork ${from}`,
      text: "The copy goes its own way from here, without the context.",
      label: "Name of the copy",
      yes: "Fork",
      check: (name) => this.#refusing(nameProblem(name), () => this.#api.fork(from, name)),
    });
    if (to === null) return;
    this.#talk.forked(to);
    await this.#open(to);
    await this.#changed();
    this.#tell(`This is ${to}, a copy of ${from}.`);
  }

  async #export() {
    const url = URL.createObjectURL(await this.#api.file(this.#talk.name));
    const link = document.createElement("a");
    link.href = url;
    link.download = `${this.#talk.name.replace(/[^\p{L}\p{N}._-]+/gu, "_")}.safetensors`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
    this.#tell(`Saved as ${link.download}.`);
  }

  async #import() {
    const [file] = $("file").files;
    $("file").value = "";
    if (!file) return;
    const name = await ask({
      title: "Import a memory",
      text: `From ${file.name}.`,
      label: "Name of the memory",
      value: file.name.replace(/\.safetensors$/, ""),
      yes: "Import",
      check: nameProblem,
    });
    if (name === null) return;
    const replaced = await this.#api.memory(name);
    if (replaced && !(await sure(`Replace ${name}?`, "What it holds now is lost.", "Replace"))) return;
    await this.#api.put(name, file);
    said.forget(name);
    if (this.#talk?.name === name) this.#talk = null;
    await this.#open(name);
    await this.#changed();
    this.#tell(`Imported as ${name}.`);
  }

  async #delete() {
    const { name, stats } = this.#talk;
    if (!(await sure(`Delete ${name}?`, "It is forgotten for good, its file too.", "Delete"))) return;
    await this.#api.remove(name);
    names.forget(stats.id);
    said.forget(name);
    await this.#open(null);
    this.#others.postMessage(name);
    this.#tell(`${name} is gone.`);
    $("name").focus();
  }

  /** Why something will not do: what is found before, or what the server says. */
  async #refusing(problem, act) {
    if (problem) return problem;
    try {
      await act();
      return "";
    } catch (error) {
      if (error instanceof Refusal) return error.message;
      throw error;
    }
  }

  /** This tab has changed the memory. */
  async #changed() {
    this.#others.postMessage(this.#talk.name);
    await this.#talk.look({ ours: true });
    await this.#list();
  }

  /** Somebody else may have changed it. */
  async #lookAgain() {
    if (this.#gone || this.#talk?.running || $("dialog").open) return;
    await this.#guarded(async () => {
      await this.#talk?.look();
      await this.#list();
    });
  }

  #tell(text) {
    $("status").textContent = text;
  }

  #show() {
    const talk = this.#talk;
    const { state, entries } = talk ?? { state: null, entries: [] };
    document.title = talk ? `${talk.name} · deltamem` : "deltamem";
    $("title").textContent = talk?.name ?? "No memory is open";
    $("welcome").hidden = entries.length > 0;
    this.#transcript.show(entries);
    this.#inside.show(state, (turn) => talk?.saidOf(turn) ?? null);
    this.#showButtons();
    if (talk) said.keep(talk.name, talk);
  }

  #showButtons() {
    const talk = this.#talk;
    const { stats = null, running = false, dropped = false } = talk ?? {};
    const idle = talk !== null && !running && !this.#gone;
    const holds = Boolean(stats?.turns || stats?.tokens_written);
    $("actions").hidden = talk === null;
    $("drop").disabled = !idle || dropped || !stats?.context_tokens;
    $("undo").disabled = !idle || !stats?.undo_turns;
    $("redo").disabled = !idle || !talk.redoable;
    for (const id of ["fork", "export", "delete"]) $(id).disabled = !idle || !holds;
    $("message").disabled = talk === null;
    $("message").rows = Math.min(MOST_ROWS, $("message").value.split("\n").length);
    $("message").placeholder = talk ? "Tell it something, or ask" : "Open a memory first";
    $("send").hidden = running;
    $("send").disabled = !idle || !$("message").value.trim();
    $("stop").hidden = !running;
  }
}

async function askKey(wrong) {
  if ($("dialog").open) return null; // what is asked there is refused, and says why
  return ask({
    title: "This server asks for a key",
    text: wrong ? "That was not it." : "The API key that it was started with. It stays in this tab.",
    label: "API key",
    secret: true,
    yes: "Go on",
  });
}

function sure(title, text, yes) {
  return ask({ title, text, yes, grave: true });
}

function nameProblem(name) {
  return name.length <= MOST_NAME ? "" : `A name has ${MOST_NAME} characters at most.`;
}

function nameInAddress() {
  try {
    return decodeURIComponent(location.hash.slice(1)) || null;
  } catch {
    return null;
  }
}

function on(id, what, act) {
  $(id).addEventListener(what, (event) => {
    if (what === "submit") event.preventDefault();
    act();
  });
}

await new Page().begin();
