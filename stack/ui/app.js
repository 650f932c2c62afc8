// The page: which view the address names, and the keys.

import { h, problem } from "./dom.js";
import * as agents from "./agents.js";
import * as benchmarks from "./benchmarks.js";
import * as chat from "./chat.js";
import * as jobs from "./jobs.js";
import * as models from "./models.js";
import * as traces from "./traces.js";
import * as vectors from "./vectors.js";

// By the first part of the address: title, the key after g, and what shows it.
const VIEWS = {
  models: ["Models", "m", models],
  chat: ["Chat", "c", chat],
  agents: ["Agents", "a", agents],
  jobs: ["Jobs", "j", jobs],
  traces: ["Traces", "t", traces],
  "vector-dbs": ["Vectors", "v", vectors],
  benchmarks: ["Benchmarks", "b", benchmarks],
};
const MORE_KEYS = [["/", "to the first field"], ["j, k", "down and up in a list"], ["Enter", "open"], ["Esc", "stop, leave a field, or go back"], ["?", "this help"]];

const main = document.querySelector("main");
const help = document.querySelector("#keys");
let leaving = new AbortController();

async function show() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decoded);
  const [title, , view] = VIEWS[name] || VIEWS.models;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.textContent === title) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${[title, ...rest].join(" · ")} · stack`;
  const root = h("div", {}, h("p", { class: "quiet" }, "…"));
  main.replaceChildren(root);
  main.focus();
  try {
    await view.show(root, rest, { signal, every: (ms, work) => every(ms, work, signal) });
  } catch (error) {
    if (!signal.aborted) root.replaceChildren(problem(error));
  }
}

// Work now and then again, while the view is shown and the page is looked at, until it says false. What fails
// later is shown and tried again.
async function every(ms, work, signal) {
  let notice = null;
  for (let first = true; !signal.aborted; first = false) {
    try {
      if (!document.hidden && (await work()) === false) return;
      notice?.remove();
      notice = null;
    } catch (error) {
      if (first || signal.aborted) throw error;
      if (!notice) main.append((notice = problem(error)));
    }
    await new Promise((done) => setTimeout(done, ms));
  }
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

let going = false; // g was pressed

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog[open]")) return;
  const typing = event.target.matches("input, textarea, select");
  if (event.key === "Escape") {
    if (typing) event.target.blur();
    else if (!main.dispatchEvent(new CustomEvent("stop", { cancelable: true }))) return; // a view stopped something
    else if (location.hash.split("/").length > 2) history.back();
  }
  if (typing) return;
  const wanted = Object.entries(VIEWS).find(([, [, key]]) => going && key === event.key);
  going = event.key === "g";
  if (wanted) location.hash = `#/${wanted[0]}`;
  else if (event.key === "/") focus(main.querySelector("input, textarea, select"), event);
  else if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
  else if (event.key === "?") help.showModal();
}

function focus(element, event) {
  if (!element) return;
  event.preventDefault();
  element.focus();
}

function step(by) {
  const items = [...main.querySelectorAll(".item")];
  const at = items.indexOf(document.activeElement);
  items[Math.min(Math.max(at + by, 0), items.length - 1)]?.focus();
}

document.querySelector("nav").append(
  ...Object.entries(VIEWS).map(([name, [title, key]]) => h("a", { href: `#/${name}`, title: `g ${key}` }, title)),
);
help.querySelector("dl").append(
  ...[...Object.values(VIEWS).map(([title, key]) => [`g ${key}`, title]), ...MORE_KEYS].flatMap(([keys, meaning]) => [
    h("dt", {}, h("kbd", {}, keys)),
    h("dd", {}, meaning),
  ]),
);
document.querySelector("#help").addEventListener("click", () => help.showModal());
document.addEventListener("keydown", onKey);
window.addEventListener("hashchange", show);
show();
