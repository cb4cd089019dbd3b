// What the page says: the count of hits, what went wrong, and the field for a key.

import { forgetPictures, hasKey, setKey } from "./api.js";
import { byId, element } from "./dom.js";

const MOST_RETRIES = 3;

export function say(text) {
  byId("status").textContent = text;
}

// A line for each word that is not known; a click on another word asks for that instead.
export function showUnknown(unknown, actions) {
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
  byId("unknown").replaceChildren(...lines);
}

export function clearProblem() {
  byId("message").replaceChildren();
  byId("filter-error").textContent = "";
  byId("filter").removeAttribute("aria-invalid");
  byId("key-form").hidden = true;
}

// `again` runs the search once more; `tries` counts how often it has been refused in a row.
export function showProblem(problem, tries, again) {
  if (problem.status === 401 || problem.status === 403) askForKey(problem);
  const busy = problem.status === 429;
  const seconds = busy && tries < MOST_RETRIES ? Math.ceil(problem.retryAfter ?? 2) : null;
  const lines = [element("h2", {}, busy ? "The server is busy" : problem.title || "Something went wrong")];
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
  if (!problem.type.endsWith("invalid-filter")) return;
  byId("filter-error").textContent = problem.detail;
  byId("filter").setAttribute("aria-invalid", "true");
  byId("options").open = true;
}

function askForKey(problem) {
  byId("key-form").hidden = false;
  byId("key-help").textContent =
    problem.status === 403 || hasKey() ? "The server does not take this key for searches." : "";
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
