// What all views build their elements with. Texts are only ever set as text: what a server says is never markup.

const SVG = "http://www.w3.org/2000/svg";

// An element. Properties that are functions listen to the event of that name, null and false are left out.
export function h(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// What an element holds from now on.
export function put(element, ...children) {
  element.replaceChildren();
  return fill(element, {}, children);
}

// A table whose rows are lists of texts and elements. Columns: names, of numbers with a "#" before them.
export function table(columns, rows) {
  const numeric = columns.map((name) => (name.startsWith("#") ? "number" : null));
  const head = columns.map((name, at) => h("th", { class: numeric[at], scope: "col" }, name.replace("#", "")));
  const body = rows.map((row) => h("tr", {}, row.map((cell, at) => h("td", { class: numeric[at] }, cell))));
  return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)));
}

// A link that j and k move to.
export function item(hash, text) {
  return h("a", { href: hash, class: "item" }, text);
}

export function state(name) {
  return h("span", { class: `state-${name}` }, String(name).replace("_", " "));
}

export function pairs(entries) {
  return h("dl", {}, entries.map(([name, value]) => [h("dt", {}, name), h("dd", {}, shown(value))]));
}

export function shown(value) {
  if (value instanceof Node || typeof value === "string") return value;
  return value === null || value === undefined ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value);
}

export function problem(error) {
  return h("p", { class: "error", role: "alert" }, error.message || String(error));
}

// What to do where there is nothing yet.
export function empty(text, command) {
  return h("div", { class: "quiet" }, h("p", {}, text), command ? h("pre", {}, command) : null);
}

export function field(label, input, wide = false) {
  return h("label", { class: wide ? "wide" : null }, label, input);
}

export function moment(text) {
  return text ? h("time", { datetime: text, title: text }, new Date(text).toLocaleString()) : "–";
}

export function duration(ms) {
  if (ms === null || Number.isNaN(ms)) return "–";
  if (ms < 1000) return `${ms < 10 ? ms.toFixed(1) : ms.toFixed(0)} ms`;
  const seconds = ms / 1000;
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// InterleavedContent as text.
export function contentText(content) {
  if (typeof content === "string") return content;
  const items = Array.isArray(content) ? content : content ? [content] : [];
  return items.map((each) => (each.type === "text" ? each.text : `[${each.type}]`)).join("");
}
