// The hits as a grid of cards; each opens to its words, and leads to similar ones.

import { picture, relative } from "./api.js";
import { breakable, byId, element, number, percent, unseen } from "./dom.js";
import { counted } from "./words.js";

const WORDS_ON_CARD = 3;

export function labelOf({ id, text, uri, metadata }) {
  const name = uri ? uri.split("/").pop() : "";
  return String(metadata?.label || text || name || id);
}

const labels = new Map(); // of what has been shown, by id

export const labelFor = (id) => labels.get(id) ?? id;

export function card(hit, open, actions) {
  const label = labelOf(hit.document);
  labels.set(hit.id, label);
  const view = element("span", { class: "view" });
  const name = element("span", { class: "label" }, ...breakable(label));
  const button = element(
    "button",
    {
      type: "button",
      class: "card",
      "aria-expanded": "false",
      "aria-controls": "detail",
      on: { click: () => open(hit, button) },
    },
    view,
    name,
    summary(hit),
  );
  fill(view, hit, hit.thumbnail_url, "").then((url) => {
    if (!url && label === hit.document.text) name.replaceChildren(...breakable(hit.id)); // the text is in view
  });
  const foot = element("div", { class: "foot" }, score(hit), similar(hit, label, actions));
  return element("li", { data: { id: hit.id } }, button, foot);
}

// A listed item has no score. Relevance says more than a score, where there is one.
function score({ score: own, relevance }) {
  if (own === null) return element("span", { class: "score" });
  if (relevance === null) return element("span", { class: "score" }, unseen("score "), number(own));
  const title = `How likely it is what you asked for. Its score is ${number(own, 4)}.`;
  return element("span", { class: "score", title }, `${percent(relevance)} likely`);
}

export function similar(hit, label, actions) {
  return element(
    "button",
    {
      type: "button",
      class: "similar",
      "aria-label": `Similar to ${label}`,
      title: "Find similar items",
      on: { click: () => actions.similar(hit.id) },
    },
    "Similar",
  );
}

function summary(hit) {
  const { text = [] } = hit.explanation ?? {};
  const words = counted(hit).slice(0, WORDS_ON_CARD).map((match) => match.word);
  words.push(...text.map((match) => `\u201c${match.word}\u201d`));
  if (!words.length) return null;
  return element("span", { class: "why" }, unseen("by "), words.join(", "));
}

// The picture of an address; the hit's text where there is none. Decorative where a label stands
// beside it.
export async function fill(view, hit, address, alt) {
  let url = null;
  try {
    url = address === null ? null : await picture(relative(address));
  } catch {
    view.classList.add("broken");
  }
  if (url) {
    view.replaceChildren(element("img", { src: url, alt }));
  } else {
    view.classList.add("text");
    view.replaceChildren(element("span", {}, hit.document.text || labelOf(hit.document)));
  }
  return url;
}

// Arrows move between cards by their place on the screen; Home and End go to the ends.
export function watchArrows() {
  const list = byId("hits");
  list.addEventListener("keydown", (event) => {
    const cards = [...list.querySelectorAll(".card")];
    const at = cards.indexOf(event.target);
    if (at < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
    const top = (shown) => shown.getBoundingClientRect().top;
    const columns = cards.filter((other) => top(other) === top(cards[0])).length;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    let next = at + (steps[event.key] ?? 0);
    if (event.key === "Home") next = 0;
    if (event.key === "End") next = cards.length - 1;
    if (next === at || !cards[next]) return;
    event.preventDefault();
    cards[next].focus();
  });
}
