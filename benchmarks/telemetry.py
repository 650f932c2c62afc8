"""Queries over many spans, and what recording costs.

    python benchmarks/telemetry.py queries --spans 10000 100000 1000000
    python benchmarks/telemetry.py cost --url http://127.0.0.1:8321
    python benchmarks/telemetry.py other --url http://127.0.0.1:8321 --other http://127.0.0.1:8322
    python benchmarks/telemetry.py mixed --url http://127.0.0.1:8321

queries: fills an SQLite file in a temporary folder, or the database at --database, and asks each query of
the API 20 times; medians. cost: the median time of a request that does nothing, and chats per second with 8
clients, recorded and not in turn. other: chats beside a second server with STACK_TELEMETRY=false. mixed: 64
requests of five kinds at once; each must leave the spans, below the same parents, that one of its kind leaves
alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import secrets
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

MODELS = ("smollm2-135m", "all-MiniLM-L6-v2", "org/rare")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("queries", "cost", "other", "mixed"))
    parser.add_argument("--spans", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--database", help="SQLAlchemy URL of an empty database")
    parser.add_argument("--url", default="http://127.0.0.1:8321")
    parser.add_argument("--other", default="http://127.0.0.1:8322")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    asyncio.run({"queries": queries, "cost": cost, "other": other, "mixed": mixed}[args.what](args))


def megabytes(home: Path) -> float:
    return sum(file.stat().st_size for file in home.glob("telemetry.db*")) / 2**20


async def queries(args: argparse.Namespace) -> None:
    from stack.settings import Settings
    from stack.telemetry.store import open_spans

    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home), telemetry_url=args.database)
        async with open_spans(settings) as store:
            filled = 0
            for total in sorted(args.spans):
                began = time.perf_counter()
                for first in tqdm(range(filled, total, 1000), unit="k spans"):
                    await store.write(spans(first, min(1000, total - first)))
                rate = (total - filled) / (time.perf_counter() - began)
                filled = total
                size = megabytes(Path(home))
                print(f"{total:,} spans, {rate:,.0f} a second, {size:,.0f} MiB")
                await ask(store, total)


def spans(first: int, count: int) -> list[Any]:
    """Traces of ten spans each, as chats of agents have them."""
    from stack.telemetry.spans import SpanRecord

    rng, now = random.Random(first), int(time.time() * 1e6)
    found = []
    for number in range(first, first + count):
        trace, place = divmod(number, 10)
        start = now - 10**9 + number * 10
        model = MODELS[0] if rng.random() < 0.9 else MODELS[1] if rng.random() < 0.999 else MODELS[2]
        attributes = {
            "gen_ai.request.model": model,
            "gen_ai.operation.name": rng.choice(("chat", "embeddings", "execute_tool")),
            "gen_ai.usage.output_tokens": rng.randrange(1000),
            "session_id": f"session-{trace // 5}",
            "http.response.status_code": rng.choice((200, 200, 200, 500)),
        }
        found.append(
            SpanRecord(
                f"{trace:032x}",
                f"{number:016x}",
                now + 10**12,
                f"span {place}",
                None if place == 0 else f"{number - place + (place - 1) // 2:016x}",
                start,
                start + rng.randrange(10**6),
                "ok",
                dict(attributes),
            )
        )
    return found


async def ask(store: Any, total: int) -> None:
    from stack.schemas.telemetry import QueryCondition
    from stack.telemetry.conditions import checked

    def where(key: str, op: str, value: Any) -> Any:
        return checked([QueryCondition.model_validate({"key": key, "op": op, "value": value})])

    middle = total // 2
    common = where("gen_ai.request.model", "eq", MODELS[0])
    rare = where("gen_ai.request.model", "eq", MODELS[2])
    session = where("session_id", "eq", f"session-{middle // 50}")
    slow = where("span.duration_ms", "gt", 999.9)
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "get trace": lambda: store.trace(f"{middle // 10:032x}"),
        "get span": lambda: store.span(f"{middle // 10:032x}", f"{middle:016x}"),
        "span tree": lambda: store.tree(f"{middle:016x}"),
        "traces, no filter": lambda: store.traces([]),
        "traces, a session": lambda: store.traces(session),
        "traces, nine in ten": lambda: store.traces(common),
        "traces, one in 10,000": lambda: store.traces(rare),
        "traces, two filters": lambda: store.traces([*common, *slow]),
        "traces, by end": lambda: store.traces(common, ["-end_time"]),
        "spans, a session": lambda: store.find(session, 1000),
        "spans, nine in ten": lambda: store.find(common, 100),
        "spans, not nine in ten": lambda: store.find(where("gen_ai.request.model", "ne", MODELS[0]), 100),
        "spans, slow": lambda: store.find(slow, 1000),
        "spans, more than 500 tokens": lambda: store.find(
            where("gen_ai.usage.output_tokens", "gt", 500), 100
        ),
        "spans, a key that none has": lambda: store.find(where("none", "eq", 1), 100),
    }
    for name, call in calls.items():
        times = []
        for _ in range(20):
            began = time.perf_counter()
            await call()
            times.append(time.perf_counter() - began)
        print(f"  {name:28} {statistics.median(times) * 1e3:8.1f} ms, at most {max(times) * 1e3:.1f}")


async def cost(args: argparse.Namespace) -> None:
    """Of recording, in one server: the caller's traceparent says whether a request is recorded."""
    async with httpx.AsyncClient(base_url=args.url, timeout=120) as client:
        rates: dict[bool, list[float]] = {True: [], False: []}
        for number in tqdm(range(args.rounds), unit="round"):
            for recorded in (True, False) if number % 2 else (False, True):  # nobody is always first
                rates[recorded].append(await chats(client, args.model, asked(recorded)))
        times = await no_op(client)
    for recorded, of in rates.items():
        p50, rate = statistics.median(times[recorded]) * 1e3, statistics.median(of)
        print(f"{'recorded' if recorded else 'not recorded'}: no-op p50 {p50:.2f} ms, {rate:.2f} chats/s")


async def other(args: argparse.Namespace) -> None:
    """Beside a server that records nothing at all."""
    async with (
        httpx.AsyncClient(base_url=args.url, timeout=120) as on,
        httpx.AsyncClient(base_url=args.other, timeout=120) as off,
    ):
        rates: dict[httpx.AsyncClient, list[float]] = {on: [], off: []}
        for number in tqdm(range(args.rounds), unit="round"):
            for client in (on, off) if number % 2 else (off, on):
                rates[client].append(await chats(client, args.model, dict))
    for client, found in rates.items():
        print(f"{client.base_url}: {statistics.median(found):.2f} chats/s")


def asked(recorded: bool) -> Callable[[], dict[str, str]]:
    """Headers of a new trace for each request."""
    flags = "01" if recorded else "00"
    return lambda: {"traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{flags}"}


async def no_op(client: httpx.AsyncClient) -> dict[bool, list[float]]:
    """One after the other, every second one recorded."""
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in range(4000):
        recorded = number % 2 == 0
        began = time.perf_counter()
        (await client.get("/v1/version", headers=asked(recorded)())).raise_for_status()
        times[recorded].append(time.perf_counter() - began)
    return times


async def chats(client: httpx.AsyncClient, model: str, headers: Callable[[], dict[str, str]]) -> float:
    async def one(number: int) -> None:
        messages = [{"role": "user", "content": f"{number}: what is the capital of France?"}]
        sampling = {"strategy": {"type": "greedy"}, "max_tokens": 32}
        body = {"model_id": model, "messages": messages, "sampling_params": sampling}
        answer = await client.post("/v1/inference/chat-completion", json=body, headers=headers())
        answer.raise_for_status()

    began = time.perf_counter()
    for first in range(0, 32, 8):
        await asyncio.gather(*(one(first + number) for number in range(8)))
    return 32 / (time.perf_counter() - began)


async def mixed(args: argparse.Namespace) -> None:
    greedy = {"strategy": {"type": "greedy"}, "max_tokens": 8}
    said = [{"role": "user", "content": "What is the capital of France?"}]
    chat = {"model_id": args.model, "messages": said, "sampling_params": greedy}
    embed = {"model_id": MODELS[1], "contents": ["a text"]}
    shield = {"shield_id": "pii", "messages": said, "params": {}}
    agent = {"model": args.model, "instructions": "Be brief.", "sampling_params": greedy}
    async with httpx.AsyncClient(base_url=args.url, timeout=300) as client:

        async def post(path: str, body: Any) -> httpx.Response:
            return (await client.post(path, json=body)).raise_for_status()

        agent_id = (await post("/v1/agents", {"agent_config": agent})).json()["agent_id"]

        async def turn() -> httpx.Response:
            path = f"/v1/agents/{agent_id}/session"
            session = (await post(path, {"session_name": "s"})).json()["session_id"]
            return await post(f"{path}/{session}/turn", {"messages": said, "stream": True})

        kinds: list[Callable[[], Awaitable[httpx.Response]]] = [
            lambda: post("/v1/inference/chat-completion", chat),
            lambda: post("/v1/inference/chat-completion", chat | {"stream": True}),
            lambda: post("/v1/inference/embeddings", embed),
            lambda: post("/v1/safety/run-shield", shield),
            turn,
        ]
        alone = [await shape(client, await ask(), None) for ask in kinds]
        asked = [kinds[number % len(kinds)]() for number in range(64)]
        answers = await asyncio.gather(*asked)
        traces = {answer.headers["x-trace-id"] for answer in answers}
        found, expected, right = 0, 0, 0
        for number, answer in enumerate(answers):
            wanted = alone[number % len(kinds)]
            spans = await shape(client, answer, len(wanted))
            found, expected, right = found + len(spans), expected + len(wanted), right + (spans == wanted)
        print(f"64 requests in {len(traces)} traces, {found} spans of {expected}; {right} are as alone")


async def shape(
    client: httpx.AsyncClient, answer: httpx.Response, count: int | None
) -> list[tuple[str, str]]:
    """Each span's name and its parent's, once there are `count` of them, or after two seconds."""
    trace = answer.headers["x-trace-id"]
    wait, tree = 2.0 if count is None else 0.1, dict[str, Any]()
    for _ in range(1 if count is None else 100):
        await asyncio.sleep(wait)
        got = await client.get(f"/v1/telemetry/traces/{trace}")
        if got.status_code == 404:
            continue
        root = got.json()["root_span_id"]
        tree = (await client.post(f"/v1/telemetry/spans/{root}/tree", json={})).json()["data"]
        if count is None or len(tree) >= count:
            break
    names = {span["span_id"]: span["name"] for span in tree.values()}
    return sorted((span["name"], names.get(span.get("parent_span_id"), "")) for span in tree.values())


if __name__ == "__main__":
    main()
