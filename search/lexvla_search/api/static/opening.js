// What is there before anything is asked for: items from all over the index, and words to try.

import { documentPath, getJson, search } from "./api.js";
import { byId, element } from "./dom.js";

const GROUPS = 12; // places of the index that items are taken from
const EACH = 2;
const EXAMPLES = 6;
const WORD = /^\p{L}{3,}$/u;

// The answer to a search for everything, with hits from equally distant places.
export async function sample(index, facets, signal) {
  const first = await search({ k: GROUPS * EACH, facets }, null, signal);
  if (first.total <= GROUPS * EACH) return first;
  const reach = Math.min(first.total, index.limits.offset) - EACH;
  const places = Array.from({ length: GROUPS - 1 }, (_, i) => Math.floor(((i + 1) * reach) / (GROUPS - 1)));
  const parts = await Promise.all(
    places.map((offset) => search({ k: EACH, offset }, null, signal)),
  );
  const hits = [first.hits.slice(0, EACH), ...parts.map((part) => part.hits)].flat();
  return { ...first, hits: [...new Map(hits.map((hit) => [hit.id, hit])).values()], next: null };
}

// Words of some of the items, as searches that find something.
export async function showExamples(hits, actions, isCurrent) {
  const step = Math.max(1, Math.floor(hits.length / EXAMPLES));
  const chosen = hits.filter((_, i) => i % step === 0).slice(0, EXAMPLES);
  const answers = await Promise.all(
    chosen.map(({ id }) => getJson(documentPath(id, "words?top_k=5")).catch(() => ({ words: [] }))),
  );
  if (!isCurrent()) return;
  const words = new Set();
  for (const answer of answers) {
    const word = answer.words.map((entry) => entry.word).find((each) => WORD.test(each) && !words.has(each));
    if (word) words.add(word);
  }
  const buttons = [...words].map((word) =>
    element("button", { type: "button", class: "example", on: { click: () => actions.example(word) } }, word),
  );
  byId("examples").hidden = buttons.length === 0;
  byId("example-words").replaceChildren(...buttons.map((button) => element("li", {}, button)));
}

export const hideExamples = () => (byId("examples").hidden = true);
