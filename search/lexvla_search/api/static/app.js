// The page: one state, one search at a time, and the link that says both.

import { getJson, search } from "./api.js";
import { showChips } from "./chips.js";
import { watchWordField } from "./completion.js";
import { detailPanel } from "./detail.js";
import { byId, element, number, plural } from "./dom.js";
import { askFacets, showFacets, watchFacets } from "./facets.js";
import { card, watchArrows } from "./hits.js";
import { clearProblem, markFilter, say, showProblem, showUnknown, watchKey } from "./messages.js";
import { hideExamples, sample, showExamples } from "./opening.js";
import { watchImage } from "./query_image.js";
import * as query from "./state.js";
import { wordList } from "./words.js";

const PAGE = 24; // hits at a time
const ASKED_WORDS = 12;
const LEGS = { lexical: "words", codes: "concepts", dense: "overall likeness", text: "its text" };

let index = null; // what the server says of itself
let state = query.fromLink(location.search);
let image = { file: null, region: null };
let running = null; // the AbortController of the search under way
let retry = 0; // the timer of the next try
let next = null; // where more hits begin
let opener = null; // the card whose hit is open

// Images are no part of a link; the tab keeps them, and its history says which one.
const images = new Map();

const actions = {
  ban: (word) => go(query.withBan(readForm(), word)),
  boost: (word) => go(query.withBoost(readForm(), word)),
  require: (word) => go(query.withRequire(readForm(), word)),
  release: (word) => (focusText(), go(query.without(readForm(), word))),
  other: (word, other) => (focusText(), go(query.withOther(readForm(), word, other))),
  noFilter: () => (focusText(), go({ ...readForm(), filter: "" })),
  only: (choice) => go(query.toggled(readForm(), choice)),
  notOnly: (choice) => (focusText(), actions.only(choice)),
  similar: (id) => (focusText(), go(query.moreOf(readForm(), id), { file: null, region: null })),
  notSimilar: (id) => (focusText(), go(query.withoutSimilar(readForm(), id))),
  example: (word) => (focusText(), go({ ...query.NOTHING, text: word })),
  image: (file) => go(readForm(), { file, region: null }),
};
const picture = watchImage((brought) => go(readForm(), brought));
const detail = detailPanel(actions, closeDetail);

// One step of the user's: it becomes an entry of the history, and is searched for.
function go(nextState, nextImage = image) {
  state = nextState;
  image = nextImage;
  history.pushState(imageNote(), "", query.toLink(state) || "./");
  return run();
}

function imageNote() {
  if (!image.file) return null;
  let kept = [...images].find(([, file]) => file === image.file)?.[0];
  if (kept === undefined) {
    kept = `${Date.now()}-${images.size}`;
    images.set(kept, image.file);
  }
  return { image: kept, region: image.region };
}

function comeBack() {
  state = query.fromLink(location.search);
  const note = history.state;
  const file = images.get(note?.image) ?? null;
  image = { file, region: file ? note.region : null };
  return run().then(() => {
    if (note?.image && !file) say("The image of this search is gone with the last page. Drop it again.");
  });
}

function showState() {
  const text = byId("text");
  if (text.value !== state.text) text.value = state.text;
  byId("filter").value = state.filter;
  byId("fusion").value = state.fusion;
  for (const box of byId("legs").querySelectorAll("input")) {
    box.checked = !state.legs.length || state.legs.includes(box.value);
  }
  document.title = state.text ? `${state.text} – LexVLA` : "LexVLA";
  picture.show(image);
  showChips(state, actions);
}

async function run(tries = 0) {
  clearTimeout(retry);
  running?.abort();
  const mine = new AbortController();
  running = mine;
  showState();
  byId("results").setAttribute("aria-busy", "true");
  const asks = query.asksSomething(state, image.file);
  try {
    await knowIndex();
    if (running !== mine) return undefined;
    if (!asks && !index.fields) return (clearProblem(), clearHits(), say(""));
    const answer = await (asks
      ? search(request({ facets: askFacets(index) }), image.file, mine.signal)
      : sample(index, askFacets(index), mine.signal));
    if (running !== mine) return undefined;
    clearProblem();
    showAnswer(answer, asks);
  } catch (problem) {
    if (running !== mine || problem.name === "AbortError") return undefined;
    fail(problem, tries);
  }
  byId("results").removeAttribute("aria-busy");
  return undefined;
}

const request = (more) => ({ ...query.toRequest(state, image.file, image.region), k: PAGE, ...more });

function fail(problem, tries) {
  clearProblem();
  clearHits();
  say("");
  retry = showProblem(problem, tries, () => run(tries + 1));
  markFilter(problem);
}

function showAnswer({ query: asked, hits, ...answer }, asks) {
  showAsked(asked.words.slice(0, ASKED_WORDS));
  showUnknown(asked.unknown, asked.unread, actions);
  const open = detail.id();
  byId("hits").replaceChildren(...hits.map((hit) => card(hit, openDetail, actions)));
  showMoreFrom(answer.next);
  showFacets(answer.facets, state, actions);
  say(hits.length ? status(hits, answer, asks) : asks ? "No hits." : "The index is empty.");
  hideExamples();
  const mine = running;
  if (!asks) showExamples(hits, actions, () => running === mine);
  else if (!hits.length) showNothing(asked);
  if (open !== null) keepOpen(hits.find((hit) => hit.id === open));
}

function status(hits, { total, total_exact: exact, next: following, good_match: good, took_ms: took }, asks) {
  const items = `${exact ? "" : "at least "}${plural(total, "item")}`;
  if (!asks) return hits.length < total ? `Some of ${items}` : `All ${items}`;
  const scored = hits[0].score !== null;
  const some = scored ? `The best ${hits.length} of ${items}` : `${hits.length} of ${items}`;
  const warning = good === false ? "Nothing matches well. " : "";
  const count = following === null ? plural(hits.length, scored ? "hit" : "item") : some;
  return `${warning}${count} · ${number(took.total, 0)} ms`;
}

function showMoreFrom(place) {
  next = place;
  byId("more").hidden = place === null;
}

function showNothing(asked) {
  const hints = [];
  if (state.text.trim() && !asked.words.length) hints.push("No word of the query is known.");
  if (state.ban.length || state.require.length) hints.push("Remove a banned or required word.");
  if (state.filter || state.only.length) hints.push("Loosen the filter.");
  if (!hints.length) hints.push("Try other words: nothing in the index shares one with the query.");
  byId("hits").replaceChildren(
    element("li", { class: "nothing" }, ...hints.map((hint) => element("p", {}, hint))),
  );
}

function showAsked(words) {
  byId("asked").hidden = words.length === 0;
  byId("asked-summary").textContent = words.map(({ word }) => word).join(", ");
  byId("asked-words").replaceChildren(...wordList(words, actions));
}

function clearHits() {
  byId("hits").replaceChildren();
  showMoreFrom(null);
  hideExamples();
  showFacets({}, state, actions);
  byId("asked").hidden = true;
  showUnknown([], "", actions);
  byId("results").removeAttribute("aria-busy");
  detail.hide();
}

async function showMore() {
  const mine = running;
  byId("more").disabled = true;
  try {
    const answer = await search(request({ after: next }), image.file, mine.signal);
    if (running !== mine) return;
    const cards = answer.hits.map((hit) => card(hit, openDetail, actions));
    byId("hits").append(...cards);
    showMoreFrom(answer.next);
    say(plural(byId("hits").children.length, "hit"));
    cards[0]?.querySelector(".card").focus();
  } catch (problem) {
    if (problem.name !== "AbortError") retry = showProblem(problem, 0, () => (clearProblem(), showMore()));
  } finally {
    byId("more").disabled = false;
  }
}

function openDetail(hit, button) {
  if (detail.id() === hit.id) return closeDetail();
  markOpen(button);
  const done = detail.show(hit);
  detail.focus();
  return done;
}

// After a change the hit stays open, with its new parts, if it is still one.
function keepOpen(hit) {
  if (!hit) {
    say(`${byId("status").textContent} The open hit is no longer among them.`);
    detail.hide();
    return focusText();
  }
  markOpen(cardOf(hit.id));
  const held = byId("detail").contains(document.activeElement);
  const done = detail.show(hit);
  if (held) detail.focus();
  return done;
}

const cardOf = (id) =>
  [...byId("hits").children].find((item) => item.dataset.id === id)?.querySelector(".card");

function markOpen(button) {
  opener?.setAttribute("aria-expanded", "false");
  opener = button;
  opener?.setAttribute("aria-expanded", "true");
}

function closeDetail() {
  detail.hide();
  const before = opener;
  markOpen(null);
  before?.focus();
}

function focusText() {
  byId("text").focus({ preventScroll: true });
}

async function knowIndex() {
  if (index) return;
  index = await getJson("v1/index");
  byId("about").textContent = plural(index.count, "item");
  const legs = Object.keys(index.legs).filter((leg) => index.legs[leg] > 0);
  if (index.has_text) legs.push("text");
  const boxes = legs.map((leg) => {
    const box = element("input", { type: "checkbox", name: "leg", value: leg });
    return element("label", {}, box, ` ${LEGS[leg] ?? leg}`);
  });
  byId("legs").replaceChildren(byId("legs").querySelector("legend"), ...boxes);
  byId("legs-row").hidden = legs.length < 2;
  showState();
}

// The state with what the fields hold: a click must not lose words that are typed but not sent.
function readForm() {
  const boxes = [...byId("legs").querySelectorAll("input")];
  const on = boxes.filter((box) => box.checked).map((box) => box.value);
  const legs = on.length === boxes.length ? [] : on;
  const [text, filter, fusion] = ["text", "filter", "fusion"].map((id) => byId(id).value.trim());
  return { ...state, text, filter, legs, fusion };
}

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  go(readForm());
});
for (const id of ["legs", "fusion"]) byId(id).addEventListener("change", () => go(readForm()));
byId("more").addEventListener("click", showMore);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.defaultPrevented && detail.isOpen()) closeDetail();
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    byId("text").select();
    focusText();
  }
});
addEventListener("popstate", comeBack);
watchArrows();
watchWordField(actions);
watchFacets();
watchKey(run);
byId("options").open = Boolean(state.filter || state.legs.length || state.fusion);
byId("asked").open = matchMedia("(min-width: 36.01rem)").matches; // on a phone, one line
comeBack();
