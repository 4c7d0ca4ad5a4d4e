// Words shaded by how strongly they were written.

// Of what the strongest word has: the others are what every word is written with.
const WORTH_SHADING = 0.3;

/**
 * The words of a text with the strength of their strongest token.
 *
 * @param text the text
 * @param pieces `[piece, strength]` of its tokens, which together are the text
 * @returns `{ text, strength }` of each word and of what stands between; strength null: not written
 */
export function words(text, pieces) {
  const strengths = new Array(text.length).fill(null);
  if (pieces?.map(([piece]) => piece).join("") === text) {
    let place = 0;
    for (const [piece, strength] of pieces) {
      strengths.fill(strength, place, (place += piece.length));
    }
  }
  return [...text.matchAll(/\s+|\S+/gu)].map(({ 0: part, index }) => {
    const found = strengths.slice(index, index + part.length).filter((s) => s !== null);
    const blank = !part.trim();
    return { text: part, strength: blank || !found.length ? null : Math.max(...found) };
  });
}

/** The strongest of some words: `most` of them, without punctuation, each once. */
export function strongest(found, most = 3) {
  const best = new Map();
  for (const { text, strength } of found) {
    const word = text.replace(/^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$/gu, "");
    if (word && strength !== null) best.set(word, Math.max(strength, best.get(word) ?? 0));
  }
  const top = Math.max(0, ...best.values());
  return [...best]
    .filter(([, strength]) => strength >= top * WORTH_SHADING)
    .sort((a, b) => b[1] - a[1])
    .slice(0, most);
}

/** Put words into an element; the style sheet has the stronger the darker, up to `top`. */
export function shade(element, found, top) {
  const parts = found.map(({ text, strength }) => {
    if (strength === null || strength < top * WORTH_SHADING) return document.createTextNode(text);
    const mark = document.createElement("span");
    mark.className = "written";
    mark.textContent = text;
    mark.title = `written with ${strength.toFixed(2)}`;
    mark.style.setProperty("--strength", strength);
    return mark;
  });
  element.replaceChildren(...parts);
}
