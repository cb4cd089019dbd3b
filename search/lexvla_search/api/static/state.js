// What is asked for: plain values, never changed in place, and written as a link.

const GREATEST_BOOST = 16;

export const NOTHING = Object.freeze({
  text: "",
  boost: new Map(),
  ban: [],
  require: [],
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
    boost,
    ban: [...new Set(given.getAll("ban"))],
    require: [...new Set(given.getAll("require"))],
    filter: given.get("filter") ?? "",
    legs: given.getAll("leg"),
    fusion: given.get("fusion") ?? "",
  };
}

export function toLink(state) {
  const link = new URLSearchParams();
  if (state.text) link.set("q", state.text);
  for (const [word, factor] of state.boost) link.append("boost", `${word}:${factor}`);
  for (const word of state.ban) link.append("ban", word);
  for (const word of state.require) link.append("require", word);
  if (state.filter) link.set("filter", state.filter);
  for (const leg of state.legs) link.append("leg", leg);
  if (state.fusion) link.set("fusion", state.fusion);
  const written = link.toString();
  return written ? `?${written}` : "";
}

// The body of a search. Boosted words alone, without text or image, are the query themselves.
export function toRequest(state, hasImage, region) {
  const request = { explain: true };
  const text = state.text.trim();
  if (text) request.text = text;
  if (hasImage && region) request.region = region;
  if (state.boost.size) {
    const words = Object.fromEntries(state.boost);
    if (text || hasImage) request.boost = words;
    else request.terms = words;
  }
  if (state.ban.length) request.ban = state.ban;
  if (state.require.length) request.require = state.require;
  if (state.filter.trim()) request.filter = state.filter.trim();
  if (state.legs.length) request.legs = state.legs;
  if (state.fusion) request.fusion = state.fusion;
  return request;
}

export const asksSomething = (state, hasImage) =>
  hasImage || state.text.trim() !== "" || state.boost.size > 0;

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

// As the grammar of filters writes it: strings are those of JSON.
export function withFilter(state, field, value) {
  const comparison = `${JSON.stringify(field)} = ${JSON.stringify(value)}`;
  const before = state.filter.trim();
  if (!before) return { ...state, filter: comparison };
  if (before.includes(comparison)) return state;
  const whole = /\bor\b/.test(before) ? `(${before})` : before;
  return { ...state, filter: `${whole} and ${comparison}` };
}
