// Elements are made here and nowhere else. Text goes in as text: no string is ever read as HTML.

export const byId = (id) => document.getElementById(id);

// Keys of `properties` are attributes, but for `on` (listeners by event) and `data`.
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    } else if (name === "data") {
      Object.assign(made.dataset, value);
    } else {
      made.setAttribute(name, value === true ? "" : String(value));
    }
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// A name that may be broken after each of its separators, as a path has them.
export const breakable = (text) =>
  String(text)
    .split(/(?<=[\p{L}\p{N}][/\\_.:\-]+)(?=[\p{L}\p{N}])/u)
    .flatMap((part, i) => (i ? [element("wbr"), part] : [part]));

export const number = (value, digits = 3) => Number(value).toFixed(digits);

export const percent = (share) => `${number(100 * share, 0)}%`;

export const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

export const unseen = (text) => element("span", { class: "unseen" }, text);

// Share of a bar that is filled; set through the style object, which the page's policy allows.
export function bar(share) {
  const filled = element("span", { class: "filled" });
  filled.style.width = `${(100 * Math.min(Math.max(share, 0), 1)).toFixed(1)}%`;
  return element("span", { class: "bar", "aria-hidden": "true" }, filled);
}
