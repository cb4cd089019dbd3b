// One hit, opened: its words, where each was read from, and what its score is made of.

import { documentPath, getBlob, getJson, picture, relative } from "./api.js";
import { breakable, byId, element, number, percent } from "./dom.js";
import { nameOf } from "./facets.js";
import { fill, labelOf, similar } from "./hits.js";
import { counted, wordItem, wordList } from "./words.js";

const SHOWN_WORDS = 16; // that of words.py: as many as a ban looks at
const PAUSE = 60; // ms on a word before its heat map is asked for
const LEGS = { lexical: "words", codes: "concepts", dense: "overall likeness", text: "its text" };
const LOOK = "Press a word to see where it was read.";

export function detailPanel(actions, close) {
  const panel = byId("detail");
  let current = null;

  async function show(hit) {
    const label = labelOf(hit.document);
    current = hit;
    const view = element("div", { class: "view" });
    const caption = element("p", { class: "quiet caption" }, "");
    const others = element("section", {});
    const title = element("h2", { id: "detail-title", tabindex: "-1" }, ...breakable(label));
    const look = hit.image_url === null ? null : heatMap(hit, panel, view, caption);
    const ways = element("div", { class: "row ways" }, similar(hit, label, actions));
    panel.replaceChildren(
      element(
        "div",
        { class: "row top" },
        title,
        element(
          "button",
          { type: "button", class: "close", "aria-label": "Close", on: { click: close } },
          "×",
        ),
      ),
      element("div", { class: "pane" }, view, caption),
      ways,
      hit.score === null ? "" : matches(hit, actions, look),
      others,
      hit.score === null ? "" : parts(hit),
      facts(hit.document, actions),
    );
    panel.hidden = false;
    await fill(view, hit, hit.image_url, `${label}, the hit's image`);
    if (current !== hit) return;
    if (view.querySelector("img")) {
      caption.textContent = LOOK;
      ways.append(searchByPart(hit, actions));
    }
    await addOthers(hit, others, actions, look, () => current === hit);
  }

  return {
    show,
    focus: () => byId("detail-title")?.focus(),
    hide() {
      current = null;
      panel.hidden = true;
      panel.replaceChildren();
    },
    isOpen: () => current !== null,
    id: () => current?.id ?? null,
  };
}

function searchByPart(hit, actions) {
  const act = async () => {
    const blob = await getBlob(relative(hit.image_url));
    actions.image(new File([blob], labelOf(hit.document), { type: blob.type }));
  };
  return element("button", { type: "button", on: { click: act } }, "Search by a part of it");
}

// Shows where a word was read: the one that was pressed, or while it lasts the one pointed at.
function heatMap(hit, panel, view, caption) {
  let timer = 0;
  let pressed = null;
  let word = null;

  async function draw() {
    const asked = word;
    if (!view.querySelector("img")) return;
    try {
      const path = documentPath(hit.id, `heatmap/${encodeURIComponent(asked)}`);
      const url = await picture(path);
      if (word !== asked) return;
      if (!url) throw new Error(`Where “${asked}” was read is not known.`);
      view.querySelector(".heat")?.remove();
      view.append(element("img", { class: "heat", src: url, alt: `Where ${asked} was read` }));
      caption.textContent = `Where “${asked}” was read`;
    } catch (problem) {
      if (word === asked) caption.textContent = problem.message;
    }
  }

  function show(next) {
    if (next === word) return;
    clearTimeout(timer);
    word = next;
    if (next !== null) {
      timer = setTimeout(draw, PAUSE);
      return;
    }
    view.querySelector(".heat")?.remove();
    if (view.querySelector("img")) caption.textContent = LOOK;
  }

  return {
    point: (next) => show(next ?? pressed),
    press(next) {
      pressed = pressed === next ? null : next;
      for (const button of panel.querySelectorAll("button.word")) {
        const own = button.closest("li").dataset.word;
        button.setAttribute("aria-pressed", String(own === pressed));
      }
      show(pressed);
    },
  };
}

const added = (match) => match.part;

function matches(hit, actions, look) {
  const found = counted(hit);
  const section = element("section", {}, element("h3", {}, "Words that matched"));
  if (!found.length) {
    const reason = hit.explanation?.matches?.length
      ? "Words in common add nothing to this score."
      : "No word of the query is among its words.";
    section.append(element("p", { class: "quiet" }, reason));
    section.append(inText(hit));
    return section;
  }
  const most = Math.max(...found.map(added));
  const items = found.slice(0, SHOWN_WORDS).map((match) => {
    const item = wordItem(match.word, added(match) / most, number(added(match)), actions, look);
    item.querySelector(".value").title =
      `query ${number(match.query_weight)} × item ${number(match.document_weight)} = ` +
      number(match.product);
    return item;
  });
  const list = element("ul", { class: "words", "aria-label": "Words that matched" }, ...items);
  section.append(list, rest(found.slice(SHOWN_WORDS)), inText(hit));
  return section;
}

// The words of the query that somebody wrote beside the picture.
function inText(hit) {
  const found = hit.explanation?.text ?? [];
  if (!found.length) return "";
  const words = found.map((match) => `${match.word} ${number(added(match))}`);
  return element("p", {}, `In its text: ${words.join(", ")}`);
}

function rest(found) {
  if (!found.length) return "";
  const sum = found.reduce((total, match) => total + added(match), 0);
  return element("p", { class: "quiet" }, `and ${found.length} more, ${number(sum)} together`);
}

async function addOthers(hit, section, actions, look, isCurrent) {
  const matched = new Set(counted(hit).map((match) => match.word));
  let words;
  try {
    ({ words } = await getJson(documentPath(hit.id, `words?top_k=${SHOWN_WORDS}`)));
  } catch (problem) {
    if (isCurrent()) section.replaceChildren(element("p", { class: "quiet" }, problem.message));
    return;
  }
  const others = words.filter(({ word }) => !matched.has(word));
  if (!isCurrent() || !others.length) return;
  section.replaceChildren(
    element("h3", {}, "Its other words"),
    element("ul", { class: "words", "aria-label": "Its other words" }, ...wordList(others, actions, look)),
  );
}

function parts(hit) {
  const legs = hit.explanation?.parts ?? [];
  const cell = (text, tag = "td") => element(tag, tag === "th" ? { scope: "row" } : {}, text);
  const rows = legs.map((part) =>
    element(
      "tr",
      {},
      cell(LEGS[part.leg] ?? part.leg, "th"),
      cell(part.score === null || part.score === undefined ? "–" : number(part.score)),
      cell(part.rank === null || part.rank === undefined ? "–" : String(part.rank)),
      cell(number(part.part, 4)),
    ),
  );
  const sum = (name, value) =>
    rows.push(element("tr", { class: "sum" }, cell(name, "th"), cell(""), cell(""), cell(value)));
  sum("Score", number(hit.score, 4));
  if (hit.relevance !== null) sum("How likely it is right", percent(hit.relevance));
  const head = ["", "its score", "its rank", "adds"].map((name) => element("th", { scope: "col" }, name));
  return element(
    "section",
    {},
    element("h3", {}, "How the score adds up"),
    element(
      "table",
      { class: "parts" },
      element("thead", {}, element("tr", {}, ...head)),
      element("tbody", {}, ...rows),
    ),
  );
}

function facts(document, actions) {
  const rows = [element("dt", {}, "id"), element("dd", {}, ...breakable(document.id))];
  if (document.uri && document.uri !== document.id) {
    rows.push(element("dt", {}, "file"), element("dd", {}, ...breakable(document.uri)));
  }
  if (document.text) rows.push(element("dt", {}, "text"), element("dd", {}, document.text));
  for (const [field, value] of Object.entries(document.metadata ?? {})) {
    const values = Array.isArray(value) ? value : [value];
    const buttons = values.map((one) =>
      element(
        "button",
        {
          type: "button",
          class: "value",
          "aria-label": `Only ${field} ${nameOf(one)}`,
          title: "Narrow down to this",
          on: { click: () => actions.only([field, one]) },
        },
        ...breakable(nameOf(one)),
      ),
    );
    rows.push(element("dt", {}, field), element("dd", {}, ...buttons));
  }
  return element("section", {}, element("h3", {}, "Document"), element("dl", {}, ...rows));
}
