// Elements from values. Texts come from a model: they reach the page as text nodes only, never as
// HTML, and what no eye can see in them is spelt out.
"use strict";

const LONG = 20000; // characters that are shown before one asks for all
const UNSEEN = /[\p{C}\p{Zl}\p{Zp}\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\u{e0000}-\u{e0fff}]/u;
const UNSEEN_ALL = new RegExp(UNSEEN.source, "gu");

const el = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") node.className = value;
    else if (name.includes("-") || name === "role" || name === "tabindex") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const digits = size >= 99.95 ? 0 : size >= 9.9995 ? 1 : size === 0 || size >= 0.001 ? 3 : null;
  const shown = digits === null ? value.toExponential(2) : value.toFixed(digits);
  return (/^-0\.?0*$/.test(shown) ? shown.slice(1) : shown).replace("-", "−");
}

const signed = (value) => (value > 0 ? "+" : "") + number(value);
const count = (n, one, many = one + "s") => n.toLocaleString("en") + " " + (n === 1 ? one : many);

// What no eye can see is spelt out; line ends and tabs stay.
function addVisible(node, text) {
  if (!UNSEEN.test(text)) {
    node.append(text);
    return;
  }
  let last = 0;
  for (const match of text.matchAll(UNSEEN_ALL)) {
    if (match[0] === "\n" || match[0] === "\t") continue;
    if (match.index > last) node.append(text.slice(last, match.index));
    const code = match[0].codePointAt(0).toString(16);
    node.append(make("span", { class: "unseen" }, "\\u{" + code + "}"));
    last = match.index + match[0].length;
  }
  if (last < text.length) node.append(text.slice(last));
}

const visible = (tag, text, properties = {}) => {
  const node = make(tag, properties);
  addVisible(node, text);
  return node;
};

// Where a text may be cut: not between the halves of one sign.
function boundary(text, place) {
  const code = text.charCodeAt(place);
  return code >= 0xdc00 && code <= 0xdfff && place > 0 ? place - 1 : place;
}

// `marks` are [start, length] pairs in order. A long text is cut, with a button for the rest.
function words(text, marks = []) {
  const box = make("div", { class: "words" });
  const fill = (end) => {
    box.replaceChildren();
    let last = 0;
    for (const [start, length] of marks) {
      if (start >= end) break;
      if (start > last) addVisible(box, text.slice(last, start));
      box.append(visible("mark", text.slice(start, Math.min(end, start + length))));
      last = Math.min(end, start + length);
    }
    if (last < end) addVisible(box, text.slice(last, end));
  };
  if (text.length <= LONG) {
    fill(text.length);
    return box;
  }
  fill(boundary(text, LONG));
  const button = make("button", { type: "button" }, "show all " + count(text.length, "character"));
  button.addEventListener("click", () => {
    fill(text.length);
    button.remove();
  });
  return make("div", {}, box, button);
}

// Places of one side: 0 the action, 1 the expert's step.
function marksOf(rollout, side) {
  const found = [];
  for (let k = 0; k < rollout.marks.length; k += 3) {
    found.push([rollout.marks[k + side], rollout.marks[k + 2]]);
  }
  return found;
}
