// The list of memories.

import { names } from "./kept.js";
import { make } from "./transcript.js";

const $ = (id) => document.getElementById(id);

/**
 * Show the memories that there are.
 *
 * @param memories as `/v1/memories` lists them
 * @param current the name of the one that is open
 * @param open called with the name of one that is to be opened; null: with its id as well
 */
export function listMemories(memories, current, open) {
  const found = memories.map((memory) => ({ ...memory, name: memory.session ?? names.of(memory.id) }));
  found.sort((a, b) => (b.updated ?? "").localeCompare(a.updated ?? ""));
  if (current && !found.some(({ name }) => name === current)) found.unshift({ name: current });
  for (const { id, session } of memories) if (session !== null) names.note(id, session);
  $("none").hidden = found.length > 0;
  $("names").replaceChildren(
    ...found.map(({ id, name, turns, tokens_written }) => {
      const item = document.createElement("li");
      const button = make("button", "memory");
      button.type = "button";
      button.append(make("span", "what", name ?? `Without a name, ${id.slice(0, 8)}`));
      if (typeof turns === "number") button.append(make("span", "quiet", sized(turns, tokens_written)));
      if (name === current) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => open(name, id));
      item.append(button);
      return item;
    }),
  );
}

export function sized(turns, tokens) {
  const s = (count) => (count === 1 ? "" : "s");
  return `${turns} turn${s(turns)}, ${tokens.toLocaleString("en")} token${s(tokens)}`;
}
