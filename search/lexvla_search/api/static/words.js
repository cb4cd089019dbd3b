// A word with its ways: the word itself (click bans, Shift-click boosts), and a button for each.

import { bar, element, number } from "./dom.js";

export const strongest = (words) => Math.max(...words.map((word) => word.weight), Number.MIN_VALUE);

// `onLook` is told of the word under the pointer or the focus, null when it leaves. A finger cannot
// point without a press: its tap looks, and the button beside the word bans.
export function wordItem(word, share, value, actions, onLook = null) {
  function press(event) {
    if (event.pointerType === "touch" && onLook) onLook(word);
    else if (event.shiftKey) actions.boost(word);
    else actions.ban(word);
  }

  const name = element("button", {
    type: "button",
    class: "word",
    title: "Click: ban. Shift-click: boost.",
    "aria-label": `${word}, ${value}: ban, or boost with Shift`,
    on: { click: press },
  });
  name.append(
    element("span", { class: "name" }, word),
    bar(share),
    element("span", { class: "value" }, value),
  );
  const item = element(
    "li",
    { data: { word } },
    name,
    way("boost", "+", word, actions),
    way("ban", "−", word, actions),
  );
  if (onLook) {
    const byMouse = (tell) => (event) => event.pointerType !== "touch" && tell();
    const look = () => onLook(word);
    const leave = () => onLook(null);
    item.addEventListener("pointerenter", byMouse(look));
    item.addEventListener("pointerleave", byMouse(leave));
    item.addEventListener("focusin", look);
    item.addEventListener("focusout", leave);
  }
  return item;
}

const HINTS = { boost: "Boost", ban: "Ban" };

function way(kind, sign, word, actions) {
  return element(
    "button",
    {
      type: "button",
      class: `way ${kind}`,
      title: HINTS[kind],
      "aria-label": `${HINTS[kind]} ${word}`,
      on: { click: () => actions[kind](word) },
    },
    sign,
  );
}

export function wordList(words, actions, onLook = null) {
  const most = strongest(words);
  return words.map(({ word, weight }) =>
    wordItem(word, weight / most, number(weight, 2), actions, onLook),
  );
}
