// A word, with buttons that boost and ban it.

import { bar, element, number } from "./dom.js";

// The matched words that add to a hit's score: none if it is that of other legs alone.
export const counted = (hit) => (hit.explanation?.matches ?? []).filter((match) => match.part);

const strongest = (words) => Math.max(...words.map((word) => word.weight), Number.MIN_VALUE);

// `look` shows where the word was read: for as long as a mouse points at it, or until the next
// press. Without it, the word itself is nothing to press.
export function wordItem(word, share, value, actions, look = null) {
  const parts = [
    element("span", { class: "name" }, word),
    bar(share),
    element("span", { class: "value" }, value),
  ];
  const item = element(
    "li",
    { data: { word } },
    look ? lookButton(word, value, look, parts) : element("span", { class: "word" }, ...parts),
    way("boost", "+", word, actions),
    way("ban", "−", word, actions),
  );
  if (look) {
    const byMouse = (tell) => (event) => event.pointerType !== "touch" && tell();
    item.addEventListener("pointerenter", byMouse(() => look.point(word)));
    item.addEventListener("pointerleave", byMouse(() => look.point(null)));
  }
  return item;
}

function lookButton(word, value, look, parts) {
  return element(
    "button",
    {
      type: "button",
      class: "word",
      "aria-pressed": "false",
      "aria-label": `Show where ${word} was read, ${value}`,
      title: "Show where it was read",
      on: { click: () => look.press(word) },
    },
    ...parts,
  );
}

function way(kind, sign, word, actions) {
  return element(
    "button",
    {
      type: "button",
      class: `way ${kind}`,
      title: kind === "boost" ? `Count “${word}” more` : `Leave out what has “${word}”`,
      "aria-label": `${kind} ${word}`,
      on: { click: () => actions[kind](word) },
    },
    element("span", { "aria-hidden": "true" }, sign),
    element("span", { class: "says" }, kind),
  );
}

export function wordList(words, actions, look = null) {
  const most = strongest(words);
  return words.map(({ word, weight }) =>
    wordItem(word, weight / most, number(weight, 2), actions, look),
  );
}
