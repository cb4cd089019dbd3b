// Chips: one for each change to the query, each with a button that takes it back.

import { byId, element } from "./dom.js";

export function showChips(state, actions) {
  const list = byId("chips");
  const chips = [
    ...[...state.boost].map(([word, factor]) => chip("boost", word, `× ${factor}`, actions)),
    ...state.require.map((word) => chip("require", word, "required", actions)),
    ...state.ban.map((word) => chip("ban", word, "banned", actions)),
  ];
  if (state.filter) chips.push(filterChip(state.filter, actions));
  list.replaceChildren(...chips);
  list.hidden = chips.length === 0;
}

function chip(kind, word, note, actions) {
  return element(
    "li",
    { class: `chip ${kind}`, data: { word } },
    element("span", { class: "name" }, word),
    element("span", { class: "note" }, note),
    remover(`Remove: ${word}, ${note}`, () => actions.release(word)),
  );
}

function filterChip(filter, actions) {
  return element(
    "li",
    { class: "chip filter" },
    element("span", { class: "note" }, "only"),
    element("code", { class: "name" }, filter),
    remover("Remove the filter", actions.noFilter),
  );
}

function remover(label, act) {
  return element("button", { type: "button", "aria-label": label, on: { click: act } }, "×");
}
