// The rollouts of a report: searched, filtered, sorted, read. Plain functions, no library. Texts come
// from a model: they reach the page as text nodes only, never as HTML, and what no eye can see in
// them is spelt out.
"use strict";

const LISTED = 300; // groups in the list: a search narrows it
const LONG = 20000; // characters of a text that are shown before one asks for all
const UNSEEN = /([\p{C}\p{Zl}\p{Zp}\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\u{e0000}-\u{e0fff}])/u;

const state = {
  runs: [],
  run: 0, // which run is shown
  matching: [], // groups that the filter lets through, in the order of the list
  group: null, // the chosen one
  line: null, // the rollout that a link named
};

// ---- elements from values -------------------------------------------------------------------------

const el = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) node.setAttribute(name, value);
  for (const child of children.flat()) {
    if (typeof child === "string") addText(node, child);
    else if (child) node.append(child);
  }
  return node;
}

// What no eye can see is spelt out; line ends and tabs stay.
function addText(node, text) {
  text.split(UNSEEN).forEach((part, k) => {
    if (k % 2 === 0 || part === "\n" || part === "\t") node.append(part);
    else node.append(make("span", { class: "unseen" }, "\\u{" + part.codePointAt(0).toString(16) + "}"));
  });
}

function number(value) {
  if (value === null) return "–";
  const size = Math.abs(value);
  const shown = size && size < 0.001 ? value.toExponential(2) : value.toFixed(size >= 99.95 ? 0 : size >= 9.9995 ? 1 : 3);
  return shown.replace("-", "−");
}

const count = (n, one) => n.toLocaleString("en") + " " + one + (n === 1 ? "" : "s");

// `marks` are [start, length] in characters, in order. A long text is cut, with a button for the rest.
function words(text, marks = []) {
  const signs = Array.from(text);
  const box = make("div", { class: "words" });
  const fill = (end) => {
    box.replaceChildren();
    let last = 0;
    for (const [start, length] of marks.filter((mark) => mark[0] < end)) {
      addText(box, signs.slice(last, start).join(""));
      last = Math.min(end, start + length);
      box.append(make("mark", {}, signs.slice(start, last).join("")));
    }
    addText(box, signs.slice(last, end).join(""));
  };
  fill(Math.min(LONG, signs.length));
  if (signs.length <= LONG) return box;
  const button = make("button", { type: "button" }, "show all " + count(signs.length, "character"));
  button.addEventListener("click", () => {
    fill(signs.length);
    button.remove();
  });
  return make("div", {}, box, button);
}

// ---- the filter -----------------------------------------------------------------------------------

function criteria() {
  const figure = (id, none) => (el(id).value === "" ? none : Number(el(id).value));
  return {
    search: el("f-search").value.trim().toLowerCase(),
    phase: el("f-phase").value,
    from: figure("f-from", -Infinity),
    to: figure("f-to", Infinity),
    index: figure("f-index", null),
    source: el("f-source").value,
    kept: el("f-kept").value,
    failure: el("f-failure").value,
    above: figure("f-above", null),
    below: figure("f-below", null),
  };
}

function groupPasses(group, asked) {
  return (
    (!asked.phase || group.phase === asked.phase) &&
    group.step >= asked.from &&
    group.step <= asked.to &&
    (asked.index === null || group.index === asked.index) &&
    (!asked.source || "=" + group.source === asked.source) &&
    (!asked.kept || (group.phase === "train" && group.kept === (asked.kept === "kept")))
  );
}

function rolloutPasses(rollout, asked, found) {
  const failure = rollout.failure === null ? "none" : "=" + rollout.failure;
  return (
    (!asked.failure || failure === asked.failure || (asked.failure === "any" && rollout.failure !== null)) &&
    (asked.above === null || (rollout.reward !== null && rollout.reward >= asked.above)) &&
    (asked.below === null || (rollout.reward !== null && rollout.reward <= asked.below)) &&
    (found || lower(rollout, () => ["#" + rollout.line, rollout.action, rollout.thought, rollout.observation]).includes(asked.search))
  );
}

// Lower case, made once, at the first search.
function lower(thing, texts) {
  if (thing.hay === undefined) thing.hay = texts().filter((text) => text !== null).join("\n").toLowerCase();
  return thing.hay;
}

const problemOf = (group) => (group.problem === null ? null : state.runs[state.run].problems[group.problem]);

function groupHas(group, search) {
  const problem = problemOf(group);
  return (
    lower(group, () => [group.id, group.expert, group.previous]).includes(search) ||
    (problem !== null && lower(problem, () => [problem.text, ...problem.steps, problem.answer]).includes(search))
  );
}

const ORDERS = {
  worst: (group) => group.mean ?? Infinity,
  best: (group) => -(group.mean ?? -Infinity),
  std: (group) => -(group.std ?? -Infinity),
};

function applyFilter() {
  const asked = criteria();
  let rollouts = 0;
  state.matching = state.runs[state.run].groups.filter((group) => {
    if (!groupPasses(group, asked)) return false;
    const found = !asked.search || groupHas(group, asked.search);
    group.hits = group.rollouts.filter((rollout) => rolloutPasses(rollout, asked, found));
    rollouts += group.hits.length;
    return group.hits.length > 0;
  });
  const key = ORDERS[el("f-sort").value];
  if (key) state.matching.sort((one, other) => (key(one) < key(other) ? -1 : key(one) > key(other) ? 1 : 0));
  const all = state.matching.length;
  el("found").textContent =
    count(all, "group") + " with " + count(rollouts, "rollout") + " that match" +
    (all > LISTED ? "; the first " + LISTED + " are listed" : "");
  el("found").setAttribute("aria-busy", "false");
  el("groups").replaceChildren(...state.matching.slice(0, LISTED).map(listItem));
  if (all) choose(Math.max(0, state.matching.indexOf(state.group)));
  else el("group").replaceChildren(make("p", { class: "none" }, "No group matches."));
}

function listItem(group, place) {
  const item = make(
    "li", { role: "option", id: "g" + place, "data-place": place },
    make("span", {}, "step " + group.step + " · " + group.id.slice(0, 8) + " " + (group.index + 1) + "/" + group.of),
    make("span", { title: "mean reward" }, number(group.mean)),
    make("span", { class: "about" }, fate(group) + " · " + group.expert.slice(0, 80)),
  );
  item.addEventListener("click", () => choose(place, true));
  return item;
}

function fate(group) {
  if (group.phase === "eval") return "validation";
  return group.kept ? "kept" : "dropped: " + (group.dropped || "no reason given");
}

function choose(place, asked = false) {
  const group = state.matching[place];
  if (!group) return;
  if (group !== state.group) state.line = null;
  state.group = group;
  for (const item of el("groups").children) item.setAttribute("aria-selected", item.dataset.place === String(place));
  showGroup(group);
  if (!asked) return;
  history.replaceState(null, "", hashOf(group.rollouts[0].line));
  el("g" + place)?.scrollIntoView({ block: "nearest" });
}

// ---- one group in full: the problem, the expert's step, the attempts beside it ---------------------

function showGroup(group) {
  const facts = [fate(group), "source " + group.source, "group " + group.group, ...group.tags.map((tag) => tag.join(" "))];
  if (group.std !== null) facts.push("mean reward " + number(group.mean) + ", std " + number(group.std));
  const expert = make("div", { id: "expert" });
  const cards = group.rollouts.map((rollout) => attempt(group, rollout, expert));
  el("group").replaceChildren(
    make("h3", {}, "Training step " + group.step + ", problem " + group.id + ", step " + (group.index + 1) + " of " + group.of),
    make("p", { class: "facts" }, facts.join(" · ")),
    told(group),
    make("h4", {}, "The expert's step; marked is what the attempt has of it"), expert,
    make("h4", {}, count(cards.length, "attempt")), make("div", { class: "attempts", tabindex: "0" }, cards),
  );
  // The one that was linked to, or searched for, is the one that is looked at.
  const linked = group.rollouts.find((rollout) => rollout.line === state.line) || group.hits[0];
  focusOn(group, linked, expert);
}

function told(group) {
  const problem = problemOf(group);
  const details = make("details", { open: "" }, make("summary", {}, "problem, and the expert's steps so far"));
  if (problem) {
    details.append(words(problem.text));
    details.append(make("ol", {}, problem.steps.slice(0, group.index).map((step) => make("li", {}, words(step)))));
    if (problem.answer !== null) details.append(make("p", {}, "final answer: " + problem.answer));
  } else {
    details.append(make("p", { class: "none" }, "This folder does not tell the problem's text."));
    if (group.previous !== null) details.append(make("h4", {}, "the step before"), words(group.previous));
  }
  return details;
}

const note = (text) => make("p", { class: "look" }, text);
const marksOf = (rollout, side) => rollout.marks.map((mark) => [mark[side], mark[2]]);

function attempt(group, rollout, expert) {
  const figures = rollout.figures.filter((pair) => pair[1] !== null);
  const card = make(
    "section", { class: group.hits.includes(rollout) ? "attempt" : "attempt no", tabindex: "0", "data-line": rollout.line },
    make("h5", {}, "reward " + number(rollout.reward), make("a", { href: hashOf(rollout.line) }, "#" + rollout.line)),
    make(
      "dl", {}, figures.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, number(value))]),
      make("dt", {}, "tokens"), make("dd", {}, rollout.tokens.toLocaleString("en")),
    ),
    rollout.failure !== null && note("format failure: " + rollout.failure),
    rollout.truncated && note("cut at the allowed length"),
    rollout.action && rollout.action === group.previous && note("copies the step before"),
    words(rollout.action, marksOf(rollout, 0)),
    rollout.observation && [make("h4", {}, "what the world said"), words(rollout.observation)],
  );
  if (rollout.line === state.line) card.setAttribute("aria-current", "true");
  // Filled when it is opened: thoughts are most of the text.
  const thought = make("details", { class: "thought" }, make("summary", {}, "thought, " + count(rollout.thought.length, "character")));
  thought.addEventListener("toggle", () => {
    if (thought.open && thought.childElementCount === 1) thought.append(words(rollout.thought));
  });
  card.append(thought);
  for (const event of ["pointerenter", "focusin"]) card.addEventListener(event, () => focusOn(group, rollout, expert));
  return card;
}

function focusOn(group, rollout, expert) {
  if (expert.dataset.line === String(rollout.line)) return;
  expert.dataset.line = rollout.line;
  expert.replaceChildren(words(group.expert, marksOf(rollout, 1)));
  for (const card of document.querySelectorAll(".attempt")) card.classList.toggle("shown", card.dataset.line === expert.dataset.line);
}

// ---- links, keys, runs ----------------------------------------------------------------------------

const hashOf = (line) => "#r=" + (state.run === 0 ? "" : state.run + 1 + ":") + line;

// #r=LINE or #r=RUN:LINE leads to a rollout, #find=ID or #find=RUN:ID to a search; an id's own colons
// are escaped.
function followHash() {
  const [, kind, run, asked] = /^#(r|find)=(?:(\d+):)?(.*)$/.exec(location.hash) || [];
  const place = run ? Number(run) - 1 : 0;
  if (!kind || !state.runs[place]) return;
  el("filters").reset();
  showRun(place);
  if (kind === "find") {
    try {
      el("f-search").value = decodeURIComponent(asked);
    } catch {
      el("f-search").value = asked;
    }
    applyFilter();
    el("rollouts").scrollIntoView();
    return;
  }
  applyFilter();
  const found = state.matching.findIndex((group) => group.rollouts.some((rollout) => rollout.line === Number(asked)));
  if (found < 0) {
    el("found").textContent = "rollout " + asked + " of the log is not in this page";
    return;
  }
  state.group = state.matching[found];
  state.line = Number(asked);
  choose(found);
  el("group").scrollIntoView();
  document.querySelector(".attempt[aria-current]").scrollIntoView({ block: "nearest", inline: "nearest" });
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) return;
  const by = { j: 1, k: -1 }[event.key];
  if (by) choose(state.matching.indexOf(state.group) + by, true);
}

function showRun(place) {
  const groups = state.runs[place].groups;
  state.run = place;
  state.group = null;
  el("f-run").value = String(place);
  fillSelect("f-source", 1, groups.map((group) => group.source));
  fillSelect("f-failure", 3, groups.flatMap((group) => group.rollouts.map((rollout) => rollout.failure)));
}

// The first `fixed` options stay; names are marked, so that one called `any` is not mistaken.
function fillSelect(id, fixed, names) {
  const known = [...new Set(names)].filter((name) => name !== null).sort();
  const options = known.map((name) => make("option", { value: "=" + name }, name));
  el(id).replaceChildren(...[...el(id).options].slice(0, fixed), ...options);
  el(id).value = ""; // options that are put in again may bring a choice of their own
}

// ---- start ----------------------------------------------------------------------------------------

async function unpack() {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("this browser cannot unpack the rollouts; one from 2024 or later can");
  }
  const packed = Uint8Array.from(atob(el("data").textContent), (sign) => sign.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text()).runs;
}

function start(runs) {
  state.runs = runs;
  let waiting = 0;
  el("f-run").append(...runs.map((run, k) => make("option", { value: k }, run.name)));
  el("filters").addEventListener("submit", (event) => event.preventDefault());
  el("filters").addEventListener("input", (event) => {
    if (event.target.id === "f-run") showRun(Number(event.target.value));
    clearTimeout(waiting);
    el("found").setAttribute("aria-busy", "true");
    waiting = setTimeout(applyFilter, 120);
  });
  el("f-reset").addEventListener("click", (event) => {
    event.preventDefault();
    el("filters").reset();
    el("f-run").value = String(state.run);
    applyFilter();
  });
  document.addEventListener("keydown", onKey);
  addEventListener("hashchange", followHash);
  el("viewer").hidden = false;
  showRun(0);
  applyFilter();
  followHash();
  document.documentElement.dataset.ready = "true";
}

unpack().then(start, (error) => {
  el("failed").textContent = "The rollouts cannot be shown: " + error.message;
  el("failed").hidden = false;
});
