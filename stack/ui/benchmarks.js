// Benchmarks, their runs, and two runs side by side.

import { get, id } from "./api.js";
import { empty, field, h, item, moment, pairs, put, table } from "./dom.js";

export async function show(root, [benchmarkId, baseline, candidate], { signal }) {
  if (!benchmarkId) return showAll(root, signal);
  const [benchmark, { data }] = await Promise.all([
    get(`/v1/eval/benchmarks/${id(benchmarkId)}`, signal),
    get("/v1/jobs?kind=evaluate&status=completed&limit=1000", signal),
  ]);
  const runs = data.filter((job) => job.result.benchmark_id === benchmarkId);
  const functions = benchmark.scoring_functions;
  const rows = runs.map((job) => [
    item(`#/jobs/${id(job.job_id)}`, job.job_id),
    job.result.candidate,
    String(job.result.rows),
    ...functions.map((name) => scoreOf(job.result.scores[name])),
    moment(job.ended_at),
  ]);
  put(root,
    h("h1", {}, benchmarkId),
    pairs([["dataset", benchmark.dataset_id], ["scored by", functions.join(", ")], ...Object.entries(benchmark.metadata || {})]),
    h("h2", {}, "Runs"),
    rows.length ? table(["run", "candidate", "#rows", ...functions, "ended"], rows) : empty("No run is completed.", `stack eval run ${benchmarkId} --model smollm2-135m`),
    runs.length > 1 ? chooser(benchmarkId, runs, baseline, candidate) : null,
    baseline && candidate ? await comparison(baseline, candidate, signal) : null,
  );
}

async function showAll(root, signal) {
  const { data } = await get("/v1/eval/benchmarks", signal);
  const rows = data.map((each) => [item(`#/benchmarks/${id(each.identifier)}`, each.identifier), each.dataset_id, each.scoring_functions.join(", ")]);
  put(root,
    h("h1", {}, "Benchmarks"),
    rows.length ? table(["benchmark", "dataset", "scored by"], rows) : empty("None is registered yet.", "stack eval register gsm8k --file test.jsonl"),
  );
}

// The mean with its interval, else the aggregates as they are.
function scoreOf(aggregates) {
  if (!aggregates) return "–";
  const found = Object.entries(aggregates).map(([name, value]) => `${name} ${typeof value === "number" ? value.toPrecision(4) : JSON.stringify(value)}`);
  return h("span", {}, found.join(", "));
}

function chooser(benchmarkId, runs, baseline, candidate) {
  const choice = (name, chosen) => h("select", { name }, runs.map((job) => h("option", { value: job.job_id, selected: job.job_id === chosen }, `${job.result.candidate} · ${job.job_id}`)));
  const [left, right] = [choice("baseline", baseline || runs.at(-1).job_id), choice("candidate", candidate || runs[0].job_id)];
  const submit = (event) => {
    event.preventDefault();
    location.hash = `#/benchmarks/${id(benchmarkId)}/${id(left.value)}/${id(right.value)}`;
  };
  return h("div", {}, h("h2", {}, "Side by side"), h("form", { class: "row", submit }, field("baseline", left), field("candidate", right), h("button", {}, "Compare")));
}

async function comparison(baseline, candidate, signal) {
  const { scores } = await get(`/v1/eval/compare?baseline=${id(baseline)}&candidate=${id(candidate)}`, signal);
  const number = (value) => (value === undefined || value === null ? "–" : Number(value).toPrecision(4));
  const rows = Object.entries(scores).map(([name, each]) => [
    name, number(each.baseline), number(each.candidate), number(each.difference), `${number(each.low)} to ${number(each.high)}`, number(each.p_value), String(each.rows),
  ]);
  return rows.length ? table(["scored by", "#baseline", "#candidate", "#difference", "95 % interval", "#p", "#rows"], rows) : empty("The two runs have no scoring function in common.");
}
