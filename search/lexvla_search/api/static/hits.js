// The hits as a grid of cards; each opens to its words.

import { documentPath, picture } from "./api.js";
import { byId, element, number, percent } from "./dom.js";

const THUMBNAIL = 256; // pixels
const WORDS_ON_CARD = 3;

export function labelOf({ id, text, uri, metadata }) {
  const name = uri ? uri.split("/").pop() : "";
  return String(metadata?.label || text || name || id);
}

let pictures = true; // false where the server has said that it shows none

export const showPictures = (are) => (pictures = are);

const thumbnail = (document) =>
  pictures && document.uri ? picture(documentPath(document.id, `image?size=${THUMBNAIL}`)) : null;

export function card(hit, open) {
  const label = labelOf(hit.document);
  const view = element("span", { class: "view" });
  const name = element("span", { class: "label" }, label);
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
    element("span", { class: "score" }, unseen("score "), number(hit.score), ...relevance(hit)),
    summary(hit),
  );
  fill(view, hit.document, "").then((url) => {
    if (!url && label === hit.document.text) name.textContent = hit.id; // the text is in view
  });
  return element("li", { data: { id: hit.id } }, button);
}

function relevance(hit) {
  return hit.relevance === null ? [] : [" · ", unseen("relevance "), percent(hit.relevance)];
}

const unseen = (text) => element("span", { class: "unseen" }, text);

function summary(hit) {
  const { matches = [], text = [] } = hit.explanation ?? {};
  const words = matches.slice(0, WORDS_ON_CARD).map((match) => match.word);
  words.push(...text.map((match) => `\u201c${match.word}\u201d`));
  if (!words.length) return null;
  return element("span", { class: "why" }, unseen("by "), words.join(", "));
}

// The document's picture; its text where it has none. Decorative where a label stands beside it.
export async function fill(view, document, alt) {
  let url = null;
  try {
    url = await thumbnail(document);
  } catch {
    view.classList.add("broken");
  }
  if (url) {
    view.replaceChildren(element("img", { src: url, alt }));
  } else {
    view.classList.add("text");
    view.replaceChildren(element("span", {}, document.text || labelOf(document)));
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
    const columns = cards.filter((other) => other.offsetTop === cards[0].offsetTop).length;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    let next = at + (steps[event.key] ?? 0);
    if (event.key === "Home") next = 0;
    if (event.key === "End") next = cards.length - 1;
    if (next === at || !cards[next]) return;
    event.preventDefault();
    cards[next].focus();
  });
}
