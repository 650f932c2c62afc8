// Jobs, their progress as it comes, and the losses of those that train.

import { get, id, post } from "./api.js";
import { duration, empty, h, item, moment, pairs, problem, put, state, svg, table } from "./dom.js";

const ENDED = ["completed", "failed", "cancelled"];
const POLL_MS = 2000;

export async function show(root, [jobId], { signal, every }) {
  if (jobId) return showOne(root, jobId, signal, every);
  await every(POLL_MS, async () => {
    const { data } = await get("/v1/jobs?limit=100", signal);
    const rows = data.map((job) => [item(`#/jobs/${id(job.job_id)}`, job.job_id), job.kind, state(job.status), progressOf(job), moment(job.created_at)]);
    const focused = document.activeElement?.getAttribute("href");
    put(root,
      h("h1", {}, "Jobs"),
      rows.length ? table(["job", "kind", "state", "progress", "submitted"], rows) : empty("No job was submitted yet.", "stack jobs submit job.yaml\nstack eval run BENCHMARK --model smollm2-135m"),
    );
    if (focused) [...root.querySelectorAll(".item")].find((each) => each.getAttribute("href") === focused)?.focus();
  });
}

function progressOf({ progress, status }) {
  const { done, total, unit = "", phase } = progress;
  if (done === undefined) return phase || "–";
  const text = `${done}${total === undefined || total === null ? "" : ` of ${total}`} ${unit}`;
  return ENDED.includes(status) || !total ? text : [h("progress", { value: done, max: total, "aria-label": "progress" }), ` ${text}`];
}

async function showOne(root, jobId, signal, every) {
  const facts = h("div");
  const curve = h("div");
  const log = h("pre", { hidden: true });
  const cancel = h("button", { type: "button", click: stop }, "Cancel the job");
  const logs = h("button", { type: "button", click: showLog }, "Show its log");
  async function stop() {
    if (!confirm(`Cancel ${jobId}? What it has finished stays.`)) return;
    await post(`/v1/jobs/${id(jobId)}/cancel`, {}, signal).catch((error) => root.append(problem(error)));
  }
  async function showLog() {
    const response = await ask(`/v1/jobs/${id(jobId)}/logs`, { signal });
    log.hidden = false;
    log.textContent = (await response.text()) || "It has printed nothing.";
  }
  const job = await get(`/v1/jobs/${id(jobId)}`, signal);
  put(root, h("h1", {}, jobId), facts, curve, h("p", {}, cancel, " ", logs), log);
  draw(job);
  function draw(job) {
    const ended = ENDED.includes(job.status);
    cancel.disabled = ended || job.cancel_requested;
    put(facts, pairs(factsOf(job)));
    if (job.progress.curve) put(curve, curveOf(job.progress.curve));
    return !ended;
  }
  await every(POLL_MS, async () => draw(await get(`/v1/jobs/${id(jobId)}`, signal)));
}

function factsOf(job) {
  const { curve, done, total, unit, ...rest } = job.progress;
  const end = job.ended_at ? Date.parse(job.ended_at) : Date.now();
  return [
    ["kind", job.kind],
    ["state", state(job.cancel_requested && job.status === "in_progress" ? "cancelling" : job.status)],
    ["progress", h("span", {}, progressOf(job))],
    ...Object.entries(rest),
    ["attempt", job.attempt],
    ["submitted", moment(job.created_at)],
    ["time", job.started_at ? duration(end - Date.parse(job.started_at)) : "–"],
    ...(job.detail ? [["detail", job.detail]] : []),
    ...(job.failed_items || []).map(({ item, error }) => [`item ${item}`, error]),
    ...Object.entries(job.result || {}).map(([name, value]) => [name, name === "candidate" || typeof value !== "object" ? value : h("pre", {}, JSON.stringify(value, null, 1))]),
  ];
}

// Losses over steps: `{train: [[step, loss], …], validation: […]}`.
function curveOf(curve) {
  const [width, height, left, bottom] = [640, 240, 44, 22];
  const points = Object.values(curve).flat();
  if (points.length < 2) return h("p", { class: "quiet" }, "The loss is drawn as soon as there are two values.");
  const [steps, losses] = [points.map(([step]) => step), points.map(([, loss]) => loss)];
  const [first, last, low, high] = [Math.min(...steps), Math.max(...steps), Math.min(...losses), Math.max(...losses)];
  const x = (step) => left + ((width - left - 8) * (step - first)) / Math.max(last - first, 1);
  const y = (loss) => 8 + ((height - bottom - 8) * (high - loss)) / Math.max(high - low, 1e-9);
  const lines = Object.entries(curve).map(([name, values]) => svg("polyline", { class: `line-${name}`, points: values.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ") }));
  const label = (loss) => svg("text", { x: left - 6, y: y(loss) + 4, "text-anchor": "end" }, loss.toPrecision(3));
  return h("figure", {},
    svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `loss from ${losses[0]} on` },
      svg("path", { class: "axis", d: `M${left},8V${height - bottom}H${width - 8}` }),
      label(low), label(high),
      svg("text", { x: x(first), y: height - 6 }, `step ${first}`),
      svg("text", { x: x(last), y: height - 6, "text-anchor": "end" }, String(last)),
      lines),
    h("figcaption", { class: "quiet" }, "loss: ", Object.keys(curve).map((name) => h("span", { class: `key-${name}` }, `${name} `))));
}
