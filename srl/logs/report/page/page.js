// The rollouts of a report: searched, filtered, sorted, read. Plain functions, no library; texts.js,
// list.js and group.js stand before this in the page's one script.
"use strict";

// ---- links, keys, runs -----------------------------------------------------------------------

const hashOf = (line) => "#r=" + (state.run === 0 ? "" : state.run + 1 + ":") + line;

function setHash(line) {
  history.replaceState(null, "", hashOf(line));
}

function followHash() {
  const rollout = /^#r=(?:(\d+):)?(\d+)$/.exec(location.hash);
  // An id's own colons are escaped.
  const find = /^#find=(?:(\d+):)?(.*)$/.exec(location.hash);
  if (rollout) openLine(placeOf(rollout[1]), Number(rollout[2]));
  else if (find) openSearch(placeOf(find[1]), find[2]);
}

const placeOf = (run) => (run ? Number(run) - 1 : 0);

function openSearch(run, asked) {
  if (!state.runs[run]) return;
  if (run !== state.run) showRun(run);
  resetFilter();
  try {
    el("f-search").value = decodeURIComponent(asked);
  } catch {
    el("f-search").value = asked;
  }
  applyFilter(false);
  el("rollouts").scrollIntoView();
}

function openLine(run, line) {
  if (!state.runs[run]) return;
  if (run !== state.run) showRun(run);
  const wanted = (group) => group.rollouts.some((rollout) => rollout.line === line);
  let place = state.matching.findIndex(wanted);
  if (place < 0) {
    resetFilter();
    applyFilter(false);
    place = state.matching.findIndex(wanted);
  }
  if (place < 0) {
    el("found").textContent = "rollout " + line + " of the log is not in this page";
    return;
  }
  state.group = null;
  choose(place, false);
  state.line = line;
  showGroup();
  const card = document.querySelector('#group .attempt[data-line="' + line + '"]');
  el("group").scrollIntoView();
  card.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const field = event.target.closest("input, select, textarea");
  if (event.key === "Escape" && field) {
    field.blur();
    return;
  }
  if (field) return;
  const inList = event.target.closest("#groups");
  if (event.key === "/") {
    event.preventDefault();
    el("f-search").focus();
  } else if (event.key === "j" || (inList && event.key === "ArrowDown")) {
    event.preventDefault();
    move(1);
  } else if (event.key === "k" || (inList && event.key === "ArrowUp")) {
    event.preventDefault();
    move(-1);
  }
}

function showRun(place) {
  state.run = place;
  state.group = null;
  el("f-run").value = String(place);
  const groups = state.runs[place].groups;
  fillSelect(el("f-source"), 1, groups.map((group) => group.source), "=");
  const failures = groups.flatMap((group) => group.rollouts.map((rollout) => rollout.failure));
  fillSelect(el("f-failure"), 3, failures.filter((name) => name !== null), "=");
}

// The first `fixed` options stay; names are marked, so that one called `any` is not mistaken.
function fillSelect(select, fixed, names, prefix) {
  while (select.options.length > fixed) select.remove(fixed);
  for (const name of [...new Set(names)].sort()) select.append(visible("option", name, { value: prefix + name }));
}

// ---- theme, tooltips, paper ------------------------------------------------------------------

const THEMES = ["system", "light", "dark"];

function startTheme() {
  const button = el("theme");
  const set = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = "theme: " + theme;
    button.dataset.now = theme;
  };
  let kept = null;
  try {
    kept = localStorage.getItem("srl-report-theme");
  } catch {
    // Some browsers keep nothing for files.
  }
  set(THEMES.includes(kept) ? kept : "system");
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(button.dataset.now) + 1) % THEMES.length];
    set(next);
    try {
      localStorage.setItem("srl-report-theme", next);
    } catch {
      // As above.
    }
  });
}

// A browser shows a <title> after a second; this shows it at once.
function startTips() {
  const tip = el("tip");
  let over = null;
  const leave = () => {
    if (over) over.node.append(over.title);
    over = null;
    tip.hidden = true;
  };
  document.addEventListener("pointerover", (event) => {
    const node = event.target.closest ? event.target.closest("svg path, svg rect") : null;
    const title = node && node.querySelector("title");
    if (over && over.node === node) return;
    leave();
    if (!title) return;
    over = { node, title };
    title.remove();
    tip.textContent = title.textContent;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const at = node.getBoundingClientRect();
    const left = Math.min(Math.max(4, at.left + at.width / 2 - box.width / 2), innerWidth - box.width - 4);
    tip.style.left = Math.round(left) + "px";
    tip.style.top = Math.round(at.top > box.height + 10 ? at.top - box.height - 6 : at.bottom + 6) + "px";
  });
  document.addEventListener("scroll", leave, { passive: true });
}

// ---- start -----------------------------------------------------------------------------------

async function unpack() {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("this browser cannot unpack the rollouts; one from 2024 or later can");
  }
  const packed = Uint8Array.from(atob(el("data").textContent), (sign) => sign.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text()).runs;
}

function startViewer() {
  let waiting = 0;
  const later = () => {
    clearTimeout(waiting);
    el("found").setAttribute("aria-busy", "true");
    waiting = setTimeout(() => applyFilter(true), 120);
  };
  el("f-run-label").hidden = state.runs.length < 2;
  state.runs.forEach((run, k) => el("f-run").append(visible("option", run.name, { value: String(k) })));
  el("filters").addEventListener("submit", (event) => event.preventDefault());
  el("filters").addEventListener("input", (event) => {
    if (event.target.id !== "f-run") later();
  });
  el("f-run").addEventListener("change", () => {
    showRun(Number(el("f-run").value));
    applyFilter(false);
  });
  el("f-reset").addEventListener("click", (event) => {
    event.preventDefault();
    resetFilter();
    applyFilter(true);
  });
  el("before").addEventListener("click", () => turn(-1));
  el("after").addEventListener("click", () => turn(1));
  document.addEventListener("keydown", onKey);
  addEventListener("hashchange", followHash);
  el("viewer").hidden = false;
  showRun(0);
  applyFilter(false);
  followHash();
  document.documentElement.dataset.ready = "true";
}

// On paper the settings are open; the browser asks before it prints.
function startPrinting() {
  const folded = () => document.querySelectorAll("details.fold:not([open])");
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...folded()];
    for (const details of opened) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
  });
}

startTheme();
startTips();
startPrinting();
unpack().then(
  (runs) => {
    state.runs = runs;
    startViewer();
  },
  (error) => {
    el("failed").textContent = "The rollouts cannot be shown: " + error.message;
    el("failed").hidden = false;
  },
);
