// What is asked for: plain values, never changed in place, and written as a link.

const GREATEST_BOOST = 16;

export const NOTHING = Object.freeze({
  text: "",
  similar: [], // ids of items to find more of
  boost: new Map(),
  ban: [],
  require: [],
  only: [], // [field, value] or [field, [from, to]]: `to` is excluded, and either may be null
  filter: "",
  legs: [],
  fusion: "",
});

export function fromLink(search) {
  const given = new URLSearchParams(search);
  const boost = new Map();
  for (const pair of given.getAll("boost")) {
    const at = pair.lastIndexOf(":");
    const factor = Number(pair.slice(at + 1));
    if (at > 0 && Number.isFinite(factor) && factor > 0) boost.set(pair.slice(0, at), factor);
  }
  return {
    text: given.get("q") ?? "",
    similar: [...new Set(given.getAll("similar"))],
    boost,
    ban: [...new Set(given.getAll("ban"))],
    require: [...new Set(given.getAll("require"))],
    only: given.getAll("only").map(readChoice).filter(Boolean),
    filter: given.get("filter") ?? "",
    legs: given.getAll("leg"),
    fusion: given.get("fusion") ?? "",
  };
}

function readChoice(text) {
  try {
    const choice = JSON.parse(text);
    return Array.isArray(choice) && choice.length === 2 && typeof choice[0] === "string" ? choice : null;
  } catch {
    return null; // a link that was changed by hand
  }
}

export function toLink(state) {
  const link = new URLSearchParams();
  if (state.text) link.set("q", state.text);
  for (const id of state.similar) link.append("similar", id);
  for (const [word, factor] of state.boost) link.append("boost", `${word}:${factor}`);
  for (const word of state.ban) link.append("ban", word);
  for (const word of state.require) link.append("require", word);
  for (const choice of state.only) link.append("only", JSON.stringify(choice));
  if (state.filter) link.set("filter", state.filter);
  for (const leg of state.legs) link.append("leg", leg);
  if (state.fusion) link.set("fusion", state.fusion);
  const written = link.toString();
  return written ? `?${written}` : "";
}

// The body of a search. Boosted words without anything else are the query themselves; without
// anything to score by, the answer lists what the filter admits.
export function toRequest(state, hasImage, region) {
  const request = {};
  const text = state.text.trim();
  const asks = hasImage || text !== "" || state.similar.length > 0;
  if (text) request.text = text;
  if (hasImage && region) request.region = region;
  if (state.similar.length) request.similar = state.similar.map((id) => ({ id, weight: 1 }));
  if (state.boost.size) request[asks ? "boost" : "terms"] = Object.fromEntries(state.boost);
  if (state.ban.length) request.ban = state.ban;
  if (state.require.length) request.require = state.require;
  const filter = filterOf(state);
  if (filter) request.filter = filter;
  if (asks || state.boost.size) {
    request.explain = true;
    if (state.legs.length) request.legs = state.legs;
    if (state.fusion) request.fusion = state.fusion;
  }
  return request;
}

// Whether anything is asked for; otherwise the page opens on a sample of the index.
export const asksSomething = (state, hasImage) =>
  hasImage ||
  state.text.trim() !== "" ||
  filterOf(state) !== "" ||
  [...state.similar, ...state.boost, ...state.ban, ...state.require].length > 0;

// As the grammar of filters writes it: strings are those of JSON.
function filterOf(state) {
  const typed = state.filter.trim();
  const parts = state.only.map(comparison);
  if (typed) parts.unshift(parts.length && /\bor\b/.test(typed) ? `(${typed})` : typed);
  return parts.join(" and ");
}

function comparison([field, value]) {
  const name = JSON.stringify(field);
  if (!Array.isArray(value)) return `${name} = ${JSON.stringify(value)}`;
  const [from, to] = value;
  const limits = [from === null ? "" : `${name} >= ${from}`, to === null ? "" : `${name} < ${to}`];
  return limits.filter(Boolean).join(" and ");
}

export function without(state, word) {
  const boost = new Map(state.boost);
  boost.delete(word);
  const others = (words) => words.filter((other) => other !== word);
  return { ...state, boost, ban: others(state.ban), require: others(state.require) };
}

export function withBan(state, word) {
  const rest = without(state, word);
  return { ...rest, ban: [...rest.ban, word] };
}

// Each boost doubles the one before.
export function withBoost(state, word) {
  const factor = Math.min((state.boost.get(word) ?? 1) * 2, GREATEST_BOOST);
  const others = state.ban.filter((other) => other !== word);
  return { ...state, boost: new Map(state.boost).set(word, factor), ban: others };
}

export function withRequire(state, word) {
  if (state.require.includes(word)) return state;
  const others = state.ban.filter((other) => other !== word);
  return { ...state, ban: others, require: [...state.require, word] };
}

// Another word in place of one that was typed, which is of letters and digits.
export function withOther(state, word, other) {
  const typed = new RegExp(`(?<![\\p{L}\\p{N}])${word}(?![\\p{L}\\p{N}])`, "giu");
  return { ...state, text: state.text.replace(typed, other) };
}

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

export const isChosen = (state, choice) => state.only.some((other) => same(other, choice));

// Narrow down to a choice, or no longer.
export function toggled(state, choice) {
  const rest = state.only.filter((other) => !same(other, choice));
  return { ...state, only: rest.length < state.only.length ? rest : [...rest, choice] };
}

// A new search, for more of one item; what narrows it down stays.
export const moreOf = ({ only, filter }, id) => ({ ...NOTHING, similar: [id], only, filter });

export const withoutSimilar = (state, id) => ({
  ...state,
  similar: state.similar.filter((other) => other !== id),
});
