// One group in full: the problem, the expert's step, the attempts beside it.
"use strict";

function showNothing() {
  state.group = null;
  state.page = 0;
  showList();
  el("group").replaceChildren(make("p", { class: "none" }, "No group matches."));
}

function showGroup() {
  const group = state.group;
  const title = make("h3", {}, "Training step " + group.step + ", problem ");
  addVisible(title, group.id);
  title.append(", step " + (group.index + 1) + " of " + group.of);
  const facts = make("p", { class: "facts" });
  const fact = (text) => facts.append(visible("span", text));
  fact(fate(group));
  fact("step index " + group.index);
  fact("source " + group.source);
  fact("group " + group.group);
  if (group.std !== null) fact("mean reward " + number(group.mean) + ", std " + number(group.std));
  fact(count(group.prompt, "prompt token"));
  const expert = make("div", { id: "expert" });
  const thoughts = make("button", { type: "button", id: "thoughts" });
  thoughts.addEventListener("click", () => {
    state.open = !state.open;
    unfold(thoughts);
  });
  const attempts = make("div", { class: "attempts", tabindex: "0" });
  attempts.setAttribute("aria-label", count(group.rollouts.length, "attempt"));
  for (const rollout of group.rollouts) attempts.append(attempt(group, rollout, expert));
  el("group").replaceChildren(
    title, facts, told(group),
    make("h4", {}, "The expert's step; marked is what the attempt has of it"), expert,
    make("div", { class: "bar" }, make("h4", {}, count(group.rollouts.length, "attempt")), thoughts), attempts,
  );
  // The one that was linked to, or searched for, is the one that is looked at.
  const rollouts = group.rollouts;
  const linked = rollouts.findIndex((rollout) => rollout.line === state.line);
  const found = rollouts.findIndex((rollout) => group.hits && group.hits.has(rollout));
  const place = linked >= 0 ? linked : Math.max(0, found);
  focusOn(group, rollouts[place], expert);
  attempts.scrollLeft = attempts.children[place].offsetLeft - attempts.children[0].offsetLeft;
  unfold(thoughts);
}

function told(group) {
  const problem = problemOf(group);
  const details = make("details", { open: state.told }, make("summary", {}, "problem, and the expert's steps so far"));
  details.addEventListener("toggle", () => {
    state.told = details.open;
  });
  if (problem) {
    details.append(words(problem.text));
    const steps = problem.steps.slice(0, group.index);
    if (steps.length) details.append(make("ol", { class: "told" }, ...steps.map((step) => make("li", {}, words(step)))));
    if (problem.answer !== null) details.append(visible("p", "final answer: " + problem.answer, { class: "note" }));
  } else {
    details.append(make("p", { class: "none" }, "This folder does not tell the problem's text."));
    if (group.previous !== null) details.append(make("h4", {}, "the step before"), words(group.previous));
  }
  return details;
}

function attempt(group, rollout, expert) {
  const card = make("section", { class: "attempt", tabindex: "0", "data-line": String(rollout.line) });
  card.setAttribute("aria-label", "attempt " + rollout.rollout + ", reward " + number(rollout.reward));
  if (!group.hits || !group.hits.has(rollout)) card.classList.add("no");
  if (rollout.line === state.line) card.setAttribute("aria-current", "true");
  const link = make("a", { href: hashOf(rollout.line), title: "link to this rollout" }, "#" + rollout.line);
  card.append(make("h5", {}, "reward " + number(rollout.reward), link), figures(group, rollout));
  if (rollout.failure !== null) card.append(visible("p", "format failure: " + rollout.failure, { class: "fate" }));
  else if (rollout.truncated) card.append(make("p", { class: "fate" }, "cut at the allowed length"));
  card.append(rollout.action ? words(rollout.action, marksOf(rollout, 0)) : make("p", { class: "none" }, "no action"));
  if (rollout.copied && group.previous !== null) {
    card.append(make("p", { class: "fate" }, "copies the step before:"), words(group.previous));
  }
  if (rollout.observation) card.append(make("p", { class: "note" }, "the world said:"), words(rollout.observation));
  card.append(thoughtOf(rollout));
  for (const event of ["pointerenter", "focusin"]) {
    card.addEventListener(event, () => focusOn(group, rollout, expert));
  }
  return card;
}

function figures(group, rollout) {
  const list = make("dl");
  const add = (name, value) => list.append(visible("dt", name), make("dd", {}, value));
  const names = state.runs[state.run].rewards;
  names.forEach((name, k) => {
    if (rollout.rewards[k] !== null || names.length <= 4) add(name, number(rollout.rewards[k]));
  });
  if (group.phase === "train") add("advantage", rollout.advantage === null ? "–" : signed(rollout.advantage));
  state.runs[state.run].metrics.forEach((name, k) => {
    const value = rollout.metrics[k];
    if (value !== null || name === "lift") add(name, value === null ? "–" : name === "lift" ? signed(value) : number(value));
  });
  add("tokens", rollout.tokens.toLocaleString("en"));
  if (group.phase === "train") list.append(make("dt", {}, "update"), visible("dd", fate(group)));
  return list;
}

// Filled when it is opened: thoughts are most of the text.
function thoughtOf(rollout) {
  const details = make("details", { class: "thought" }, make("summary", {}, "thought, " + count(rollout.thought.length, "character")));
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(words(rollout.thought));
  });
  return details;
}

function unfold(button) {
  for (const details of document.querySelectorAll("#group .thought")) details.open = state.open;
  button.textContent = state.open ? "close all thoughts" : "open all thoughts";
}

function focusOn(group, rollout, expert) {
  if (expert.dataset.line === String(rollout.line)) return;
  expert.dataset.line = String(rollout.line);
  expert.replaceChildren(words(group.expert, marksOf(rollout, 1)));
  for (const card of document.querySelectorAll("#group .attempt")) {
    card.classList.toggle("shown", card.dataset.line === expert.dataset.line);
  }
}
