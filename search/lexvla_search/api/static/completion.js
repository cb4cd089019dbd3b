// Completion of one word from the index's vocabulary: a combobox with a list, by the ARIA pattern.

import { getJson } from "./api.js";
import { byId, element } from "./dom.js";

const PAUSE = 120; // ms without a key before the server is asked

export function completeWords(input, list) {
  let asked = null;
  let timer = 0;
  let at = -1;

  const options = () => [...list.children];

  function close() {
    clearTimeout(timer);
    asked?.abort();
    list.hidden = true;
    at = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function pick(word) {
    input.value = word;
    close();
    input.focus();
  }

  function mark(next) {
    const all = options();
    at = (next + all.length) % all.length;
    all.forEach((option, i) => option.setAttribute("aria-selected", String(i === at)));
    all[at].scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", all[at].id);
  }

  async function ask() {
    asked?.abort();
    asked = new AbortController();
    const prefix = input.value.trim();
    if (!prefix) return close();
    try {
      const answer = await getJson(`v1/words?prefix=${encodeURIComponent(prefix)}`, asked.signal);
      show(answer.words.map((entry) => (typeof entry === "string" ? entry : entry.word)));
    } catch {
      close(); // a list of hints: without it, the word is typed in full
    }
  }

  function show(words) {
    at = -1;
    input.removeAttribute("aria-activedescendant");
    list.replaceChildren(
      ...words.map((word, i) =>
        element(
          "li",
          {
            role: "option",
            id: `completion-${i}`,
            "aria-selected": "false",
            // Before the input loses the focus, which would close the list.
            on: { pointerdown: (event) => (event.preventDefault(), pick(word)) },
          },
          word,
        ),
      ),
    );
    list.hidden = words.length === 0;
    input.setAttribute("aria-expanded", String(words.length > 0));
  }

  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(ask, PAUSE);
  });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (list.hidden) return;
    if (event.key === "ArrowDown") mark(at + 1);
    else if (event.key === "ArrowUp") mark(at < 0 ? -1 : at - 1);
    else if (event.key === "Escape") close();
    else if (event.key === "Enter" && at >= 0) pick(options()[at].textContent);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  return { close };
}

// The field for a word, and what its three buttons do with it.
export function watchWordField(actions) {
  const input = byId("word");
  const completion = completeWords(input, byId("completions"));
  const take = (kind) => {
    const word = input.value.trim();
    completion.close();
    if (!word) return input.focus();
    input.value = "";
    return actions[kind](word);
  };
  for (const button of document.querySelectorAll("button[data-way]")) {
    button.addEventListener("click", () => take(button.dataset.way));
  }
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.defaultPrevented) return;
    event.preventDefault(); // Enter here boosts; it does not send the form
    take("boost");
  });
}
