"use strict";
// --- Elements. Text becomes text nodes, so that nothing in it is read as HTML. ---

const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}

const el = (name, attributes, ...children) => filled(document.createElement(name), attributes, children);
const svg = (name, attributes, ...children) => filled(document.createElementNS(SVG, name), attributes, children);

/** What the reader chose, by the id of the control: it outlives a newer content of the live page. */
const chosen = new Map();

/** A labelled select; `change` is called with the value, now and whenever another is chosen. */
function select(id, label, values, change) {
  if (!values.includes(chosen.get(id))) chosen.set(id, values[0]);
  const options = values.map((value) => el("option", { value, selected: value === chosen.get(id) }, value));
  const box = el("select", {
    id,
    disabled: values.length < 2,
    change: (event) => { chosen.set(id, event.target.value); change(event.target.value); },
  }, options);
  return el("label", { class: "control" }, el("span", {}, label), box);
}

/** A labelled checkbox. */
function checkbox(id, label, initial, change) {
  if (!chosen.has(id)) chosen.set(id, initial);
  const toggle = (event) => { chosen.set(id, event.target.checked); change(event.target.checked); };
  return el("label", { class: "control check" },
    el("input", { id, type: "checkbox", checked: chosen.get(id), change: toggle }), el("span", {}, label));
}

const words = (text) => String(text).replace(/\s+/g, " ").trim();
const textOf = (cell) => (Array.isArray(cell) ? cell[0] : cell);
const valueOf = (cell) => (Array.isArray(cell) ? cell[1] : null);

const LONG_NOTE = 600;

/** The sentences under a table or figure, and the command that prints it. */
function notes(found) {
  const text = found.notes.join(" "), long = text.length > LONG_NOTE;
  return el("div", { class: "notes" },
    found.notes.length ? el(long ? "details" : "p", {}, long ? el("summary", {}, "n, seeds, intervals, notes") : null, long ? el("p", {}, text) : text) : null,
    found.command ? el("p", {}, "Made by ", el("code", {}, found.command)) : null);
}

function card(id, title, ...children) {
  return el("section", { id, class: "card", "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), children);
}

/** The tip beside the pointer: a heading, and rows of a mark, a name and a value. */
function tip(event, heading, rows) {
  const box = document.getElementById("tip");
  box.replaceChildren(el("strong", {}, heading), ...rows.map(([mark, name, value]) =>
    el("div", {}, mark, el("span", {}, name), el("b", {}, value))));
  box.classList.add("shown");
  const wide = box.offsetWidth, high = box.offsetHeight;
  const left = event.clientX + 16 + wide > innerWidth ? event.clientX - wide - 12 : event.clientX + 16;
  box.style.left = `${Math.max(4, left)}px`;
  box.style.top = `${Math.max(4, Math.min(event.clientY + 12, innerHeight - high - 6))}px`;
}

const hideTip = () => document.getElementById("tip").classList.remove("shown");
