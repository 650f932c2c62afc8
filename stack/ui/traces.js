// Traces: the latest, those with a span that meets a condition, and one as a waterfall.

import { get, id, post } from "./api.js";
import { duration, empty, field, h, item, moment, pairs, put, state, svg, table } from "./dom.js";

const SHOWN = 50;

export async function show(root, [traceId, ...filter], { signal }) {
  if (traceId && traceId !== "where") return showOne(root, traceId, signal);
  const [key = "", op = "eq", value = ""] = filter;
  const attribute_filters = key ? [{ key, op, value: read(value) }] : [];
  const { data } = await post("/v1/telemetry/traces", { attribute_filters, limit: SHOWN }, signal);
  const roots = await Promise.all(data.map((trace) => rootOf(trace, signal)));
  const rows = data.map((trace, at) => [
    item(`#/traces/${id(trace.trace_id)}`, roots[at]?.name || trace.root_span_id),
    String(roots[at]?.attributes?.["http.response.status_code"] ?? "–"),
    duration(Date.parse(trace.end_time) - Date.parse(trace.start_time)),
    moment(trace.start_time),
    trace.trace_id,
  ]);
  put(root,
    h("h1", {}, "Traces"),
    filterForm(key, op, value),
    rows.length
      ? table(["request", "#status", "#time", "began", "trace"], rows)
      : empty(key ? "No span meets the condition." : "Nothing was recorded yet. Ask a model something, and look again."),
  );
}

function filterForm(key, op, value) {
  const inputs = [
    h("input", { name: "key", value: key, placeholder: "gen_ai.request.model", list: "known" }),
    h("select", { name: "op" }, ["eq", "ne", "gt", "lt"].map((each) => h("option", { selected: each === op }, each))),
    h("input", { name: "value", value }),
  ];
  const known = ["span.name", "span.status", "span.duration_ms", "http.route", "http.response.status_code", "gen_ai.request.model", "gen_ai.operation.name", "gen_ai.tool.name", "session_id", "turn_id", "stack.job_id"];
  const submit = (event) => {
    event.preventDefault();
    const parts = inputs.map((input) => id(input.value.trim()));
    location.hash = parts[0] ? `#/traces/where/${parts.join("/")}` : "#/traces";
  };
  return h("form", { class: "row", submit },
    field("attribute of a span", inputs[0]), field("is", inputs[1]), field("value", inputs[2]),
    h("button", {}, "Filter"),
    h("datalist", { id: "known" }, known.map((name) => h("option", { value: name }))));
}

// As JSON, if it is: types are never mixed.
function read(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" ? text : value;
  } catch {
    return text;
  }
}

function rootOf(trace, signal) {
  return get(`/v1/telemetry/traces/${id(trace.trace_id)}/spans/${id(trace.root_span_id)}`, signal).catch(() => null);
}

async function showOne(root, traceId, signal) {
  const trace = await get(`/v1/telemetry/traces/${id(traceId)}`, signal);
  const [{ data }, log] = await Promise.all([
    post(`/v1/telemetry/spans/${id(trace.root_span_id)}/tree`, {}, signal),
    get(`/v1/telemetry/traces/${id(traceId)}/events`, signal),
  ]);
  const spans = Object.values(data).filter((span) => span.trace_id === traceId);
  const times = spans.flatMap((span) => [Date.parse(span.start_time), Date.parse(span.end_time || span.start_time)]);
  const [from, to] = [Math.min(...times), Math.max(...times)];
  const grid = h("div", { class: "waterfall" });
  for (const [span, depth] of inOrder(spans)) grid.append(...rowOf(span, depth, from, Math.max(to - from, 1e-3), log.data));
  put(root,
    h("h1", {}, spans.find((span) => span.span_id === trace.root_span_id)?.name || traceId),
    h("p", { class: "quiet" }, `${traceId} · ${spans.length} spans · `, moment(trace.start_time)),
    grid,
  );
}

// Each span with its depth, children after their parents by their start.
function inOrder(spans) {
  const ids = new Set(spans.map((span) => span.span_id));
  const below = new Map();
  for (const span of [...spans].sort((a, b) => Date.parse(a.start_time) - Date.parse(b.start_time))) {
    const parent = ids.has(span.parent_span_id) ? span.parent_span_id : null;
    below.set(parent, [...(below.get(parent) || []), span]);
  }
  const found = [];
  const walk = (parent, depth) => {
    for (const span of below.get(parent) || []) {
      found.push([span, depth]);
      below.delete(parent);
      walk(span.span_id, depth + 1);
    }
  };
  walk(null, 0);
  return found;
}

function rowOf(span, depth, from, whole, log) {
  const start = Date.parse(span.start_time);
  const length = span.end_time ? Date.parse(span.end_time) - start : null;
  const detail = h("div", { class: "detail", hidden: true });
  const name = h("button", { type: "button", class: "item", "aria-expanded": "false", title: span.name, click: toggle }, `${"\u00a0\u00a0".repeat(depth)}${span.name}`);
  function toggle() {
    detail.hidden = !detail.hidden;
    name.setAttribute("aria-expanded", String(!detail.hidden));
    if (!detail.hidden) put(detail, detailOf(span, log));
  }
  const bar = svg("svg", { viewBox: "0 0 1000 10", preserveAspectRatio: "none", role: "img", "aria-label": `from ${duration(start - from)} for ${duration(length)}` },
    svg("rect", { class: span.status === "error" ? "failed" : null, x: (1000 * (start - from)) / whole, y: 2, width: Math.max((1000 * (length || 0)) / whole, 2), height: 6 }));
  return [name, bar, h("span", { class: "number" }, duration(length)), detail];
}

function detailOf(span, log) {
  const own = log.filter((event) => event.span_id === span.span_id);
  return h("div", {},
    pairs([
      ["status", state(span.status || "running")],
      ["span", span.span_id],
      ["began", moment(span.start_time)],
      ...Object.entries(span.attributes || {}).map(([key, value]) => [key, value]),
    ]),
    own.length ? h("pre", {}, own.map((event) => `${event.timestamp} ${event.message ?? `${event.metric} = ${event.value} ${event.unit}`}`).join("\n")) : null);
}
