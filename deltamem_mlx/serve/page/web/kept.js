// What the browser keeps: the API key and what was said, in this tab; names of memories, beyond it.

const KEY = "deltamem.key";
const NAMES = "deltamem.names";
const SAID = "deltamem.said.";
const MOST_ENTRIES = 200;

function read(storage, name, otherwise) {
  try {
    return JSON.parse(storage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function write(storage, name, value) {
  try {
    storage.setItem(name, JSON.stringify(value));
  } catch {
    // A full or forbidden storage: the page goes on without.
  }
}

/** The API key, until the tab is closed. */
export const keys = {
  get: () => read(sessionStorage, KEY, null),
  set: (key) => write(sessionStorage, KEY, key),
};

/** Names of memories by id: after a restart the server knows only ids of them. */
export const names = {
  of: (id) => read(localStorage, NAMES, {})[id] ?? null,
  note(id, name) {
    write(localStorage, NAMES, { ...read(localStorage, NAMES, {}), [id]: name });
  },
  forget(id) {
    const { [id]: _, ...others } = read(localStorage, NAMES, {});
    write(localStorage, NAMES, others);
  },
};

/** What this tab said to a memory, and how that was then: `{ entries, undone, stats, dropped }`. */
export const said = {
  of: (name) => read(sessionStorage, SAID + name, { entries: [], undone: [], stats: null, dropped: false }),
  keep(name, { entries, undone, stats, dropped }) {
    const newest = entries.slice(-MOST_ENTRIES);
    write(sessionStorage, SAID + name, { entries: newest, undone, stats, dropped });
  },
  forget: (name) => sessionStorage.removeItem(SAID + name),
};
