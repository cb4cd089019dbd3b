// What the page says: the count of hits, what went wrong, and the field for a key.

import { forgetPictures, hasKey, setKey } from "./api.js";
import { byId, element } from "./dom.js";

const MOST_RETRIES = 3;
// In the words of somebody who searches; for the others, those of the server.
const TITLES = {
  "bad-request": "The server could not read the search",
  invalid: "This cannot be searched for",
  unsupported: "This index cannot do that",
  "too-large": "The image is too large",
};

const kindOf = (problem) => problem.type.split(":").pop();

export function say(text) {
  byId("status").textContent = text;
}

// A line for each word that is not known; a click on another word asks for that instead. One more
// for the end of a text that the model does not read.
export function showUnknown(unknown, unread, actions) {
  const lines = unknown.map(({ word, nearest }) => {
    const others = nearest.map((other) => {
      const on = { click: () => actions.other(word, other) };
      return element("button", { type: "button", on }, other);
    });
    const before = (at) => (at === 0 ? "" : at < others.length - 1 ? ", " : " or ");
    const listed = others.flatMap((button, at) => [before(at), button]);
    const asked = others.length ? [" Did you mean ", ...listed, "?"] : [];
    return element("p", {}, `No such word: ${word}.`, ...asked);
  });
  if (unread) lines.push(element("p", {}, `The text is too long: its end, “${unread}”, is not read.`));
  byId("unknown").replaceChildren(...lines);
}

export function clearProblem() {
  byId("message").replaceChildren();
  byId("filter-error").textContent = "";
  byId("filter").removeAttribute("aria-invalid");
  lock(false);
}

// Without a key there is nothing else to do.
function lock(locked) {
  byId("key-form").hidden = !locked;
  document.body.classList.toggle("locked", locked);
}

// `again` runs the search once more; `tries` counts how often it has been refused in a row.
export function showProblem(problem, tries, again) {
  if (problem.status === 401 || problem.status === 403) return askForKey(problem);
  const busy = problem.status === 429;
  const seconds = busy && tries < MOST_RETRIES ? Math.ceil(problem.retryAfter ?? 2) : null;
  const lines = [element("h2", {}, TITLES[kindOf(problem)] || problem.title || "Something went wrong")];
  if (problem.detail) lines.push(element("p", { class: "problem" }, problem.detail));
  if (seconds !== null) {
    const unit = seconds === 1 ? "second" : "seconds";
    lines.push(element("p", {}, `Trying again in ${seconds} ${unit}.`));
  }
  if (problem.requestId) lines.push(element("p", { class: "quiet" }, `Request ${problem.requestId}`));
  if (busy || problem.status === 0 || problem.status >= 500) {
    const text = busy ? "Try now" : "Try again";
    lines.push(element("p", {}, element("button", { type: "button", on: { click: again } }, text)));
  }
  byId("message").replaceChildren(element("div", { class: "message" }, ...lines));
  return seconds === null ? null : setTimeout(again, 1000 * seconds);
}

export function markFilter(problem) {
  if (kindOf(problem) !== "invalid-filter") return;
  byId("filter-error").textContent = problem.detail;
  byId("filter").setAttribute("aria-invalid", "true");
  byId("options").open = true;
}

function askForKey(problem) {
  lock(true);
  byId("key-help").textContent =
    problem.status === 403 || hasKey()
      ? "The server does not take this key for searches."
      : "Whoever runs it can give you one.";
  byId("key").focus();
  return null;
}

export function watchKey(again) {
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = byId("key").value.trim();
    if (!key) return;
    setKey(key);
    byId("key").value = "";
    forgetPictures();
    again();
  });
}
