"""Traces go through the processes of a real stack: API, replicas and jobs."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

PARTS = {"queue", "prefill", "decode"}


def tree(http: httpx.Client, trace_id: str, wanted: set[str]) -> list[dict[str, Any]]:
    """All spans of the trace, once it has those with these names."""
    deadline = time.monotonic() + 30
    while True:
        trace = http.get(f"/v1/telemetry/traces/{trace_id}")
        if trace.status_code == 200:
            root = trace.json()["root_span_id"]
            spans = list(http.post(f"/v1/telemetry/spans/{root}/tree", json={}).json()["data"].values())
            if wanted <= {span["name"] for span in spans}:
                return spans
        assert time.monotonic() < deadline, (wanted, trace.text)
        time.sleep(0.1)


def chat(http: httpx.Client, number: int, stream: bool = False) -> httpx.Response:
    body = {
        "model_id": "smollm2-135m",
        "messages": [{"role": "user", "content": f"Say {number}."}],
        "sampling_params": {"strategy": {"type": "greedy"}, "max_tokens": 3},
        "stream": stream,
    }
    return http.post("/v1/inference/chat-completion", json=body, timeout=120).raise_for_status()


def test_a_chat_is_followed_into_the_replica(http: httpx.Client) -> None:
    answer = chat(http, 1)
    spans = tree(http, answer.headers["x-trace-id"], {"chat smollm2-135m", *PARTS})
    by_name = {span["name"]: span for span in spans}
    request, model = by_name["POST /v1/inference/chat-completion"], by_name["chat smollm2-135m"]
    assert model["parent_span_id"] == request["span_id"]
    assert model["attributes"]["gen_ai.usage.output_tokens"] == 3
    assert model["attributes"]["gen_ai.response.finish_reasons"] == ["length"]
    assert {by_name[part]["parent_span_id"] for part in PARTS} == {model["span_id"]}
    queue, prefill, decode = (by_name[part] for part in ("queue", "prefill", "decode"))
    assert model["start_time"] <= queue["start_time"] <= queue["end_time"] == prefill["start_time"]
    assert prefill["end_time"] == decode["start_time"] <= decode["end_time"] <= request["end_time"]


def test_requests_at_once_have_traces_of_their_own(http: httpx.Client) -> None:
    """64 of four kinds: each has exactly its own spans."""
    embed = {"model_id": "all-MiniLM-L6-v2", "contents": ["a text"]}

    def ask(number: int) -> tuple[set[str], str]:
        match number % 4:
            case 0:
                names = {"POST /v1/inference/chat-completion", "chat smollm2-135m", *PARTS}
                answer = chat(http, number, stream=number % 8 == 0)
            case 1:
                names = {"POST /v1/inference/embeddings", "embeddings all-MiniLM-L6-v2"}
                answer = http.post("/v1/inference/embeddings", json=embed).raise_for_status()
            case 2:
                names = {"POST /v1/safety/run-shield", "shield pii"}
                body = {"shield_id": "pii", "messages": [{"role": "user", "content": "hi"}], "params": {}}
                answer = http.post("/v1/safety/run-shield", json=body).raise_for_status()
            case _:
                names = {"GET /v1/models/{model_id}"}
                answer = http.get(f"/v1/models/none-{number}")
        return names, answer.headers["x-trace-id"]

    with ThreadPoolExecutor(64) as pool:
        asked = list(pool.map(ask, range(64)))
    assert len({trace_id for _, trace_id in asked}) == 64
    for names, trace_id in asked:
        spans = tree(http, trace_id, names)
        assert sorted(span["name"] for span in spans) == sorted(names)
        ids = {span["span_id"] for span in spans}
        assert [span["name"] for span in spans if span.get("parent_span_id") not in ids] == [
            next(name for name in names if " /" in name)
        ]


def test_a_job_goes_on_with_the_trace_of_its_request(http: httpx.Client) -> None:
    rows = [{"question": "1 + 1?", "answer": "2"}]
    body = {"purpose": "eval/question-answer", "source": {"type": "rows", "rows": rows}}
    http.post("/v1/datasets", json=body | {"dataset_id": "traced"}).raise_for_status()
    benchmark = {"benchmark_id": "traced", "dataset_id": "traced", "scoring_functions": ["basic::equality"]}
    http.post("/v1/eval/benchmarks", json=benchmark).raise_for_status()
    candidate = {
        "type": "model",
        "model": "smollm2-135m",
        "sampling_params": {"strategy": {"type": "greedy"}, "max_tokens": 2},
    }
    config = {"benchmark_config": {"eval_candidate": candidate, "scoring_params": {}}}
    answer = http.post("/v1/eval/benchmarks/traced/jobs", json=config).raise_for_status()
    spans = tree(http, answer.headers["x-trace-id"], {"job evaluate", "stage working", *PARTS})
    (job,) = (span for span in spans if span["name"] == "job evaluate")
    assert job["attributes"]["stack.job_id"] == answer.json()["job_id"]
    (model,) = (span for span in spans if span["name"] == "chat smollm2-135m")
    parents = {span["span_id"]: span.get("parent_span_id") for span in spans}
    above, ancestor = set(), model["span_id"]
    while (ancestor := parents.get(ancestor)) is not None:
        above.add(ancestor)
    assert job["span_id"] in above
