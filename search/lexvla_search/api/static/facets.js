// Metadata to narrow down by: the values of each field with their counts, or ranges of numbers.

import { breakable, byId, element } from "./dom.js";
import { isChosen } from "./state.js";

const MOST_FIELDS = 6;
const MOST_VALUES = 8; // of a field, before there are only its ranges
const RANGES = 5;
const REST = 9; // times what the listed values have: more of others, and they tell little
const OPENED = "(min-width: 60.01rem)"; // where there is room beside the hits

// What a search has to count; an engine that cannot count has no fields.
export function askFacets({ fields }) {
  return (fields ?? [])
    .filter(({ kind, distinct }) => kind !== "mixed" && distinct > 1)
    .slice(0, MOST_FIELDS)
    .map(({ name, kind, distinct, low, high }) =>
      kind === "number" && distinct > MOST_VALUES
        ? { field: name, ranges: niceRanges(low, high) }
        : { field: name, limit: MOST_VALUES },
    );
}

// Limits that are easy to read: multiples of 1, 2 or 5 times a power of ten.
export function niceRanges(low, high) {
  const rough = (high - low) / RANGES;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const limits = [];
  for (let at = Math.floor(low / step) + 1; at * step < high; at += 1) {
    limits.push(Number((at * step).toPrecision(12)));
  }
  return [null, ...limits].map((limit, i) => [limit, limits[i] ?? null]);
}

export function showFacets(facets, state, actions) {
  const groups = Object.entries(facets ?? {}).map(([field, counted]) => group(field, counted, state, actions));
  const held = choiceOf(document.activeElement);
  byId("facet-list").replaceChildren(...groups.filter(Boolean));
  const buttons = [...byId("facet-list").querySelectorAll(".facet")];
  if (held) buttons.find((button) => choiceOf(button) === held)?.focus();
  byId("facets").hidden = !groups.some(Boolean);
}

const choiceOf = (button) => button?.dataset.choice;

function group(field, { values, ranges, other }, state, actions) {
  const counted = ranges?.map(({ from, to, count }) => ({ value: [from, to], count })) ?? values;
  const chosen = counted.some(({ value }) => isChosen(state, [field, value]));
  const shown = counted.filter(({ value, count }) => count > 0 || isChosen(state, [field, value]));
  const sum = shown.reduce((total, { count }) => total + count, 0);
  // Nothing to narrow down by: one value, or values of an item or two each.
  if (!chosen && (shown.length < 2 || sum < 2 * shown.length || other > REST * sum)) return null;
  const items = shown.map(({ value, count }) => {
    const choice = [field, value];
    const button = element(
      "button",
      {
        type: "button",
        class: "facet",
        "aria-pressed": String(isChosen(state, choice)),
        "data-choice": JSON.stringify(choice),
        on: { click: () => actions.only(choice) },
      },
      element("span", { class: "name" }, ...breakable(nameOf(value))),
      element("span", { class: "count" }, count.toLocaleString("en")),
    );
    return element("li", {}, button);
  });
  return element(
    "section",
    { "aria-label": field, data: { field } },
    element("h3", {}, ...breakable(field)),
    element("ul", {}, ...items),
    other ? element("p", { class: "quiet" }, `${other.toLocaleString("en")} with other values`) : null,
  );
}

export function nameOf(value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (!Array.isArray(value)) return String(value);
  const [from, to] = value;
  if (from === null) return `under ${to}`;
  return to === null ? `${from} or more` : `${from} to under ${to}`;
}

export function watchFacets() {
  const wide = matchMedia(OPENED);
  const follow = () => (byId("facets").open = wide.matches);
  wide.addEventListener("change", follow);
  follow();
}
