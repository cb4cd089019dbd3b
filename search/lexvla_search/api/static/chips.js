// Chips: one for each change to the query, each with a button that takes it back.

import { breakable, byId, element } from "./dom.js";
import { nameOf } from "./facets.js";
import { labelFor } from "./hits.js";

export function showChips(state, actions) {
  const list = byId("chips");
  const chips = [
    ...state.similar.map((id) => chip("similar", "similar to", labelFor(id), "", () => actions.notSimilar(id))),
    ...[...state.boost].map(([word, factor]) => wordChip("boost", word, `× ${factor}`, actions)),
    ...state.require.map((word) => wordChip("require", word, "required", actions)),
    ...state.ban.map((word) => wordChip("ban", word, "banned", actions)),
    ...state.only.map((choice) =>
      chip("filter", `${choice[0]}:`, nameOf(choice[1]), "", () => actions.notOnly(choice)),
    ),
  ];
  if (state.filter) chips.push(chip("filter", "only", state.filter, "", actions.noFilter));
  list.replaceChildren(...chips);
  list.hidden = chips.length === 0;
}

function wordChip(kind, word, note, actions) {
  const made = chip(kind, "", word, note, () => actions.release(word));
  made.dataset.word = word;
  return made;
}

function chip(kind, before, name, after, remove) {
  const note = (text) => (text ? element("span", { class: "note" }, text) : null);
  const label = `Remove: ${[before, name, after].filter(Boolean).join(" ")}`;
  return element(
    "li",
    { class: `chip ${kind}` },
    note(before),
    element("span", { class: "name" }, ...breakable(name)),
    note(after),
    element("button", { type: "button", "aria-label": label, on: { click: remove } }, "×"),
  );
}
