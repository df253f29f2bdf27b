// What is shown: the runs, the filter over their groups, and the list of those that it lets through.
"use strict";

const PAGE = 50; // groups of the list

const state = {
  runs: [],
  run: 0, // which run is shown
  matching: [], // groups that the filter lets through, in the order of the list
  page: 0,
  group: null, // the chosen one
  line: null, // the rollout that a link named
  open: false, // whether thoughts are unfolded
  told: true, // whether the problem is
};

function criteria() {
  const figure = (id) => (el(id).value === "" ? null : Number(el(id).value));
  return {
    search: el("f-search").value.trim().toLowerCase(),
    phase: el("f-phase").value,
    from: figure("f-from"),
    to: figure("f-to"),
    index: figure("f-index"),
    source: el("f-source").value,
    kept: el("f-kept").value,
    failure: el("f-failure").value,
    above: figure("f-above"),
    below: figure("f-below"),
  };
}

function groupPasses(group, asked) {
  return (
    (!asked.phase || group.phase === asked.phase) &&
    (asked.from === null || group.step >= asked.from) &&
    (asked.to === null || group.step <= asked.to) &&
    (asked.index === null || group.index === asked.index) &&
    (!asked.source || group.source === asked.source.slice(1)) &&
    (!asked.kept || (group.phase === "train" && group.kept === (asked.kept === "kept")))
  );
}

function rolloutPasses(rollout, asked, found) {
  const failure = rollout.failure;
  return (
    (!asked.failure ||
      (asked.failure === "none" && failure === null) ||
      (asked.failure === "any" && failure !== null) ||
      (failure !== null && asked.failure === "=" + failure)) &&
    (asked.above === null || (rollout.reward !== null && rollout.reward >= asked.above)) &&
    (asked.below === null || (rollout.reward !== null && rollout.reward <= asked.below)) &&
    (found || rolloutText(rollout).includes(asked.search))
  );
}

// Lower case, made once, at the first search.
function groupText(group) {
  if (group.hay === undefined) {
    const problem = problemOf(group);
    const parts = [group.id, group.expert, group.previous || ""];
    if (problem) parts.push(problemText(problem));
    group.hay = parts.join("\n").toLowerCase();
  }
  return group.hay;
}

function problemText(problem) {
  if (problem.hay === undefined) {
    problem.hay = [problem.text, ...problem.steps, problem.answer || ""].join("\n").toLowerCase();
  }
  return problem.hay;
}

function rolloutText(rollout) {
  if (rollout.hay === undefined) rollout.hay = ("#" + rollout.line + "\n" + rollout.action + "\n" + rollout.thought).toLowerCase();
  return rollout.hay;
}

const problemOf = (group) => (group.problem === null ? null : state.runs[state.run].problems[group.problem]);

const ORDERS = {
  log: null,
  worst: (group) => (group.mean === null ? Infinity : group.mean),
  best: (group) => (group.mean === null ? Infinity : -group.mean),
  std: (group) => (group.std === null ? Infinity : -group.std),
};

function applyFilter(keep) {
  const asked = criteria();
  const groups = state.runs[state.run].groups;
  let rollouts = 0;
  state.matching = groups.filter((group) => {
    group.hits = null;
    if (!groupPasses(group, asked)) return false;
    const found = !asked.search || groupText(group).includes(asked.search);
    group.hits = new Set(group.rollouts.filter((rollout) => rolloutPasses(rollout, asked, found)));
    rollouts += group.hits.size;
    return group.hits.size > 0;
  });
  const order = ORDERS[el("f-sort").value];
  if (order) {
    const keys = new Map(state.matching.map((group) => [group, order(group)]));
    state.matching.sort((one, other) => (keys.get(one) < keys.get(other) ? -1 : keys.get(one) > keys.get(other) ? 1 : 0));
  }
  el("found").textContent =
    count(state.matching.length, "group") + " with " + count(rollouts, "rollout") + " that match";
  el("found").setAttribute("aria-busy", "false");
  const place = state.matching.indexOf(state.group);
  if (keep && place >= 0) choose(place, false);
  else if (state.matching.length) choose(0, false);
  else showNothing();
}

function resetFilter() {
  el("filters").reset();
  el("f-run").value = String(state.run);
}

function showList() {
  const first = state.page * PAGE;
  const items = state.matching.slice(first, first + PAGE).map((group, k) => listItem(group, first + k));
  el("groups").replaceChildren(...items);
  el("groups").setAttribute("aria-activedescendant", "g" + state.matching.indexOf(state.group));
  const pages = Math.max(1, Math.ceil(state.matching.length / PAGE));
  el("page").textContent = "page " + (state.page + 1) + " of " + pages.toLocaleString("en");
  el("before").disabled = state.page === 0;
  el("after").disabled = state.page >= pages - 1;
}

function fate(group) {
  if (group.phase === "eval") return "validation";
  return group.kept ? "kept" : "dropped: " + (group.dropped || "no reason given");
}

function listItem(group, place) {
  const item = make("li", { role: "option", id: "g" + place, "data-place": String(place) });
  const name = make("span", {}, "step " + group.step + " · ");
  addVisible(name, group.id.slice(0, 8));
  name.append(" " + (group.index + 1) + "/" + group.of);
  const about = make("span", { class: "about" });
  addVisible(about, fate(group) + " · " + group.expert.slice(0, 80));
  item.append(name, make("span", { title: "mean reward" }, number(group.mean)), about);
  item.setAttribute("aria-selected", String(group === state.group));
  item.addEventListener("click", () => choose(place, true));
  return item;
}

function choose(place, asked) {
  const group = state.matching[place];
  const other = group !== state.group;
  state.group = group;
  if (other) state.line = null;
  state.page = Math.floor(place / PAGE);
  showList();
  showGroup();
  if (asked) {
    setHash(group.rollouts[0].line);
    const item = el("g" + place);
    if (item) item.scrollIntoView({ block: "nearest" });
  }
}

function move(by) {
  const place = state.matching.indexOf(state.group) + by;
  if (place >= 0 && place < state.matching.length) choose(place, true);
}

function turn(by) {
  const place = (state.page + by) * PAGE;
  if (place >= 0 && place < state.matching.length) choose(place, true);
}
