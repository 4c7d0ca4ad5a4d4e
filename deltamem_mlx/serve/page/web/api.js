// Requests to the server that this page came from, by its public routes. Addresses are relative: a
// proxy may have put the server into a folder.

/** The server answered, and said no. */
export class Refusal extends Error {
  constructor(status, { message, code } = {}) {
    super(message ?? `The server answered with status ${status}.`);
    this.status = status;
    this.code = code;
  }
}

/** The server did not answer, or not to the end. */
export class Gone extends Error {
  constructor() {
    super("The server does not answer.");
  }
}

const addressOf = (name, rest = "") => `v1/memories/${encodeURIComponent(name)}${rest}`;

export class Api {
  #keys;
  #askKey;
  #asking = null;

  /**
   * @param keys where the API key is kept: `get()` and `set(key)`
   * @param askKey asks a person for it: `askKey(wrong)` → the key, or null
   */
  constructor(keys, askKey) {
    this.#keys = keys;
    this.#askKey = askKey;
  }

  async model() {
    const { data } = await this.#json("GET", "v1/models");
    return data[0].id;
  }

  async memories() {
    return (await this.#json("GET", "v1/memories")).data;
  }

  /** Numbers about a memory; null if there is none. */
  memory(name) {
    return this.#ifThere(addressOf(name));
  }

  /** Its states, and how like it still is to what it was; null if there is none. */
  state(name) {
    return this.#ifThere(addressOf(name, "/state"));
  }

  undo(name) {
    return this.#json("POST", addressOf(name, "/undo"), { body: "{}" });
  }

  redo(name) {
    return this.#json("POST", addressOf(name, "/redo"), { body: "{}" });
  }

  fork(name, to) {
    return this.#json("POST", addressOf(name, "/fork"), { body: JSON.stringify({ to }) });
  }

  remove(name) {
    return this.#json("DELETE", addressOf(name));
  }

  async file(name) {
    return this.#whole(await this.#send("GET", addressOf(name, "/export")), "blob");
  }

  put(name, file) {
    return this.#json("PUT", addressOf(name), { body: file });
  }

  /** Whether the server is there and well; never asks for a key. */
  async isWell() {
    try {
      return (await fetch("health", { cache: "no-store" })).ok;
    } catch {
      return false;
    }
  }

  /**
   * Say something to a memory.
   *
   * @param say `{ text, memory, signal }`; `memory` as in the body of a request
   * @param hear called with each piece of the answer: `{ content, reasoning }`
   * @returns what was used, with `memory`: what the turn made of it
   */
  async chat({ text, memory, signal }, hear) {
    const body = JSON.stringify({
      messages: [{ role: "user", content: text }],
      memory,
      stream: true,
      stream_options: { include_usage: true },
    });
    const response = await this.#send("POST", "v1/chat/completions", { body, signal });
    let usage = null;
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return usage;
      const said = JSON.parse(data);
      if (said.error) throw new Refusal(0, said.error);
      if (said.choices?.[0]?.delta) hear(said.choices[0].delta);
      usage = said.usage ?? usage;
    }
    throw new Gone();
  }

  async #ifThere(address) {
    try {
      return await this.#json("GET", address);
    } catch (error) {
      if (error.code === "memory_not_found") return null;
      throw error;
    }
  }

  async #json(method, address, options) {
    return this.#whole(await this.#send(method, address, options), "json");
  }

  async #whole(response, kind) {
    try {
      return await response[kind]();
    } catch {
      throw new Gone();
    }
  }

  async #send(method, address, { body, signal } = {}) {
    for (;;) {
      const key = this.#keys.get();
      const headers = key ? { Authorization: `Bearer ${bytesOf(key)}` } : {};
      let response;
      try {
        response = await fetch(address, { method, body, signal, headers, cache: "no-store" });
      } catch (error) {
        throw signal?.aborted ? error : new Gone();
      }
      if (response.ok) return response;
      const refusal = new Refusal(response.status, await errorIn(response));
      if (refusal.code !== "invalid_api_key" || !(await this.#newKey(key))) throw refusal;
    }
  }

  /** Ask for another key than this one; whoever else needs it waits for the same answer. */
  async #newKey(key) {
    if (this.#keys.get() !== key) return true;
    this.#asking ??= this.#askKey(key !== null).finally(() => (this.#asking = null));
    const given = await this.#asking;
    if (given) this.#keys.set(given);
    return Boolean(given);
  }
}

/** A text's UTF-8, as a header has it: a character for each byte. */
function bytesOf(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}

async function errorIn(response) {
  try {
    return (await response.json()).error;
  } catch {
    return undefined;
  }
}

/** The data of server-sent events; a connection that breaks is `Gone`. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new Gone();
      });
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6).trim();
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
