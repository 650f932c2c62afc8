"""Rows/s of a registration, its memory, and what a page costs at the start and at the end of a dataset.

Example:

    python benchmarks/dataset_rows.py --rows 1000000

Writes a jsonl file of messages, about 550 bytes a row, registers it through the HTTP application in this
process (ASGI, no socket), reads pages of 100 rows at several offsets in turn, and appends from several
clients at once. Peak memory is this process's and that of the child that reads the file, each by itself.
`loop` is the longest time that the event loop did not answer while the rows were read and stored.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import statistics
import tempfile
import time
from pathlib import Path

import httpx

from stack.app import create_app
from stack.context import open_stack
from stack.settings import Settings

WORDS = [
    "ray",
    "llama",
    "andes",
    "wool",
    "cluster",
    "river",
    "answer",
    "bread",
    "mountain",
    "score",
    "friends",
]
PAGE = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=200, help="pages at each offset")
    parser.add_argument("--appends", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8, help="that append at once")
    args = parser.parse_args()
    os.environ.setdefault("STACK_LOG_LEVEL", "WARNING")  # not a line for each request
    print(f"load average before {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder), args))


async def measure(folder: Path, args: argparse.Namespace) -> None:
    path = folder / "rows.jsonl"
    write(path, args.rows)
    print(f"file {path.stat().st_size / 2**20:.0f} MiB")
    settings = Settings(home=folder / "home", file_root=folder)
    app = create_app(lambda: open_stack(settings))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://stack", timeout=None) as client:
            await register(client, args.rows)
            print(f"disk {size(folder / 'home/lancedb') / path.stat().st_size:.2f} of the file")
            await read(client, args.rows, args.rounds, "fresh")
            await append(client, args.appends, args.clients)
            await read(client, args.rows, args.rounds, "after the appends")
            began = time.perf_counter()
            await app.state.stack.datasets.maintain()
            print(f"maintenance {time.perf_counter() - began:.1f} s")
            await read(client, args.rows, args.rounds, "after maintenance")


def write(path: Path, rows: int) -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=40)) for _ in range(5000)]
    with path.open("w") as file:
        for index in range(rows):
            messages = [
                {"role": "user", "content": texts[draw.randrange(5000)]},
                {"role": "assistant", "content": texts[draw.randrange(5000)]},
            ]
            file.write(json.dumps({"messages": messages, "index": index}) + "\n")


async def register(client: httpx.AsyncClient, rows: int) -> None:
    source = {"type": "uri", "uri": "lsfs://rows.jsonl"}
    body = {"purpose": "post-training/messages", "dataset_id": "d", "source": source}
    warm = {"purpose": "post-training/messages", "source": {"type": "rows", "rows": []}}
    (await client.post("/v1/datasets", json=warm)).raise_for_status()  # imports lancedb
    before, lag = memory(), asyncio.create_task(longest_lag())
    began = time.perf_counter()
    (await client.post("/v1/datasets", json=body)).raise_for_status()
    seconds = time.perf_counter() - began
    lag.cancel()
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(
        f"registered {rows / seconds:,.0f} rows/s in {seconds:.1f} s; peak memory {memory():.0f} MiB "
        f"(before {before:.0f}), child {child:.0f}; loop {await lag * 1e3:.0f} ms"
    )


async def longest_lag() -> float:
    longest = 0.0
    try:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            longest = max(longest, time.perf_counter() - began - 0.005)
    except asyncio.CancelledError:
        return longest


async def read(client: httpx.AsyncClient, rows: int, rounds: int, when: str) -> None:
    offsets = [0, rows // 2, max(0, rows - 1000)]
    times: dict[int, list[float]] = {offset: [] for offset in offsets}
    for _ in range(rounds):
        for offset in offsets:
            began = time.perf_counter()
            answer = await client.get(f"/v1/datasetio/iterrows/d?start_index={offset}&limit={PAGE}")
            times[offset].append(time.perf_counter() - began)
            assert answer.json()["data"][0]["index"] == offset
    p50 = {offset: statistics.median(times[offset]) for offset in offsets}
    shown = ", ".join(
        f"{offset:,}: {p50[offset] / p50[0]:.2f} ({p50[offset] * 1e3:.1f} ms)" for offset in offsets
    )
    print(f"page {when}, ratio to the first: {shown}")


async def append(client: httpx.AsyncClient, appends: int, clients: int) -> None:
    rows = [{"messages": [{"role": "user", "content": "x"}], "index": -1}] * 10
    waiting = iter(range(appends))

    async def one() -> None:
        for _ in waiting:
            (await client.post("/v1/datasetio/append-rows/d", json={"rows": rows})).raise_for_status()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    print(f"appends of 10 rows, {clients} clients: {appends / (time.perf_counter() - began):.0f} a second")


def memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
