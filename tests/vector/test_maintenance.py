"""Expiry, compaction, indexes that are measured, and disk that is freed, on real LanceDB."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stack.context import Stack
from stack.engine.base import NoMeter
from stack.schemas.vector_dbs import RegisterVectorDbRequest
from stack.settings import Settings
from stack.vector.index import Sizes, needs_building, recall, sample_queries
from stack.vector.maintenance import Maintenance
from stack.vector.params import QueryParams
from stack.vector.rows import to_table
from stack.vector.search import nearest
from stack.vector.state import IndexState, Located, VectorIndexes
from tests.vector.conftest import opened
from tests.vector.embedder import Embedder
from tests.vector.test_store import ask, chunk, documents, insert

SMALL = Sizes(indexed=500, quantised=1000)


class Gauges(NoMeter):
    """Of each vector database."""

    def __init__(self, of: dict[str, Gauges] | None = None) -> None:
        self.of = of if of is not None else defaultdict(Gauges)
        self.values: dict[str, float] = {}

    def labelled(self, **labels: str) -> Gauges:
        return self.of[labels["vector_db_id"]] if labels else self

    def gauge(self, name: str, value: float) -> None:
        self.values[name] = value


@pytest.fixture
def gauges() -> dict[str, Gauges]:
    return defaultdict(Gauges)


@pytest.fixture
def maintenance(stack: Stack, gauges: dict[str, Gauges]) -> Maintenance:
    return Maintenance(stack.database, stack.lance, Gauges(gauges), SMALL, timedelta(0))


async def located(stack: Stack) -> Located:
    return await VectorIndexes(stack.database).find("db")


async def add_vectors(stack: Stack, count: int, start: int = 0) -> None:
    """Rows without the embedding model: clusters of unit vectors, as texts on some topics have them."""
    rng = np.random.default_rng(start)
    centres = np.random.default_rng(7).normal(size=(20, 384))
    vectors = centres[rng.integers(0, 20, count)] + 0.7 * rng.normal(size=(count, 384))
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    chunks = [chunk(f"row {n} of topic {n % 20}", f"d{n}") for n in range(start, start + count)]
    table = await stack.lance.table((await located(stack)).table_name)
    await table.add(to_table(chunks, unit, None))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


async def test_small_tables_have_no_vector_index(stack: Stack, maintenance: Maintenance, gauges: Any) -> None:
    await insert(stack, *(chunk(f"number {n}", f"d{n}") for n in range(30)))
    await maintenance.step()
    state = (await located(stack)).index
    assert (state.kind, state.rows, state.recall) == ("flat", 30, None)
    assert gauges["db"].values["vector_rows"] == 30
    assert gauges["db"].values["vector_index"] == 0


async def test_what_is_deleted_has_no_rows_in_the_metrics(
    stack: Stack, maintenance: Maintenance, gauges: Any
) -> None:
    await insert(stack, chunk("a chunk", "d"))
    await maintenance.step()
    assert (gauges["db"].values["vector_rows"], gauges["db"].values["vector_fragments"]) == (1, 1)
    await stack.vector_dbs.delete("db")
    await maintenance.step()
    assert (gauges["db"].values["vector_rows"], gauges["db"].values["vector_bytes"]) == (0, 0)


@pytest.mark.parametrize(("rows", "kind"), [(600, "ivf_flat"), (1500, "ivf_sq")])
async def test_larger_ones_have_one_that_finds_what_exact_search_finds(
    stack: Stack, maintenance: Maintenance, gauges: Any, rows: int, kind: str
) -> None:
    await add_vectors(stack, rows)
    await maintenance.step()
    state = (await located(stack)).index
    assert state.kind == kind
    assert state.recall is not None
    assert state.recall >= 0.95
    assert gauges["db"].values["vector_recall"] == state.recall
    assert gauges["db"].values["vector_index"] == {"ivf_flat": 1, "ivf_sq": 2}[kind]
    found = await located(stack)
    table = await stack.lance.table(found.table_name)
    shares = []
    for query in await sample_queries(table, rows, np.random.default_rng(1)):
        exact, near = [
            {hit.id for hit in await nearest(table, found, query, 10, QueryParams(exact=exactly))}
            for exactly in (True, False)
        ]
        shares.append(len(exact & near) / 10)
    assert np.mean(shares) >= 0.85  # other queries than the 32 that were measured with
    assert (await ask(stack, "row 77 of topic 17", refine=10))[0].chunk.content == "row 77 of topic 17"


async def test_a_table_that_grew_is_indexed_anew(stack: Stack, maintenance: Maintenance) -> None:
    await add_vectors(stack, 600)
    await maintenance.step()
    await add_vectors(stack, 600, start=600)
    await maintenance.step()
    state = (await located(stack)).index
    assert (state.kind, state.trained_rows, state.rows) == ("ivf_sq", 1200, 1200)


async def test_the_keyword_index_is_brought_up_to_date(stack: Stack, maintenance: Maintenance) -> None:
    await add_vectors(stack, 300)
    table = await stack.lance.table((await located(stack)).table_name)
    before = await table.index_stats("text")
    assert before is not None
    assert before.num_unindexed_rows == 300
    await maintenance.step()
    after = await table.index_stats("text")
    assert after is not None
    assert after.num_unindexed_rows == 0
    assert documents(await ask(stack, "row 77", mode="keyword", max_chunks=1)) == ["d77"]


def test_when_an_index_is_built() -> None:
    assert not needs_building(IndexState(), 499, SMALL)
    assert needs_building(IndexState(), 500, SMALL)
    built = IndexState(kind="ivf_flat", trained_rows=500)
    assert not needs_building(built, 900, SMALL)
    assert needs_building(built, 1000, SMALL)
    assert not needs_building(IndexState(kind="ivf_sq", trained_rows=1000), 4000, SMALL)
    assert needs_building(IndexState(kind="ivf_sq", trained_rows=1000), 4001, SMALL)
    # One that found too little is not tried again until the table is another.
    assert not needs_building(IndexState(kind="flat", trained_rows=1000), 1100, SMALL)


def test_recall_is_by_distance() -> None:
    exact = [np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.5, 0.5])]
    assert recall(exact, exact) == 1.0
    assert recall(exact, [np.array([0.1, 0.2, 0.9]), np.array([0.5])]) == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert recall([np.array([])], [np.array([])]) == 1.0


async def test_small_inserts_are_compacted_and_nothing_is_lost(
    stack: Stack, maintenance: Maintenance, settings: Settings
) -> None:
    for n in range(30):
        await insert(stack, chunk(f"note number {n}", f"d{n}"))
    assert len(list((settings.home / "lancedb").rglob("*.lance"))) > 25
    await maintenance.step()
    state = (await located(stack)).index
    assert (state.rows, state.fragments) == (30, 1)
    found = await ask(stack, "note number", mode="vector", max_chunks=100)
    assert len(set(documents(found))) == 30
    assert documents(await ask(stack, "note number 17"))[0] == "d17"


async def test_what_has_expired_is_swept_and_frees_its_disk(
    stack: Stack, maintenance: Maintenance, settings: Settings
) -> None:
    await insert(stack, chunk("stays", "s"))
    await insert(stack, *(chunk(f"goes {n} " + "x" * 2000, f"g{n}") for n in range(200)), ttl_seconds=1)
    before = size(settings.home / "lancedb")
    await asyncio.sleep(1.1)
    for _ in range(3):
        await maintenance.step()
    assert (await located(stack)).index.rows == 1
    assert size(settings.home / "lancedb") < before / 2
    assert documents(await ask(stack, "goes stays")) == ["s"]


async def test_a_table_that_nothing_changed_is_left_alone(stack: Stack, maintenance: Maintenance) -> None:
    await insert(stack, chunk("one", "d"))
    for _ in range(3):
        await maintenance.step()
    table = await stack.lance.table((await located(stack)).table_name)
    version = await table.version()
    await maintenance.step()
    assert await table.version() == version


async def test_orphans_are_dropped(stack: Stack, maintenance: Maintenance, settings: Settings) -> None:
    await insert(stack, chunk("one", "d"))
    await VectorIndexes(stack.database).release("db")  # a deletion that was killed half-way
    await maintenance.step()
    assert list((settings.home / "lancedb").iterdir()) == []
    request = RegisterVectorDbRequest(vector_db_id="db", embedding_model="mini")
    await stack.vector_dbs.register(request)
    assert await ask(stack, "one") == []


async def test_a_table_that_is_made_meanwhile_is_no_orphan(
    stack: Stack, maintenance: Maintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = stack.lance.names

    async def slowly() -> list[str]:
        """Another process registers a database while the tables are listed."""
        request = RegisterVectorDbRequest(vector_db_id="new", embedding_model="mini")
        await stack.vector_dbs.register(request)
        return await names()

    monkeypatch.setattr(stack.lance, "names", slowly)
    await maintenance.step()
    assert len(await names()) == 2
    await stack.vectors.insert("new", [chunk("one", "d")])


async def test_an_indexed_table_may_become_empty(stack: Stack, maintenance: Maintenance) -> None:
    await add_vectors(stack, 600)
    await maintenance.step()
    table = await stack.lance.table((await located(stack)).table_name)
    await table.delete("true")  # as when all has expired
    await maintenance.step()
    assert (await located(stack)).index.rows == 0
    await insert(stack, chunk("one", "d"))
    await maintenance.step()
    assert documents(await ask(stack, "one")) == ["d"]


async def test_a_damaged_table_keeps_no_other_from_upkeep(
    stack: Stack, maintenance: Maintenance, settings: Settings, gauges: Any
) -> None:
    await insert(stack, chunk("one", "d"))
    for file in (settings.home / "lancedb").rglob("*.manifest"):
        file.write_bytes(b"damaged")
    request = RegisterVectorDbRequest(vector_db_id="other", embedding_model="mini")
    await stack.vector_dbs.register(request)
    await maintenance.step()
    assert gauges["other"].values["vector_rows"] == 0


async def test_inserts_and_queries_go_on_meanwhile(
    stack: Stack, settings: Settings, embedder: Embedder
) -> None:
    """Two owners, a writer that replaces documents, and a reader."""
    await add_vectors(stack, 450)
    async with opened(settings, embedder) as other:
        owners = [Maintenance(each.database, each.lance, NoMeter(), SMALL) for each in (stack, other)]

        async def write() -> None:
            for n in range(12):
                await insert(other, *(chunk(f"fresh {n} {m}", f"f{m}") for m in range(10)))

        async def read() -> None:
            for _ in range(30):
                found = await ask(stack, "fresh row of topic", max_chunks=20)
                assert len(found) == 20
                await asyncio.sleep(0.01)

        async def maintain() -> None:
            for _ in range(6):
                await asyncio.gather(*(owner.step() for owner in owners))

        await asyncio.gather(write(), read(), maintain())
        for owner in owners:
            await owner.step()
    everything = await ask(stack, "fresh", mode="vector", max_chunks=1000)
    assert len(everything) == 460
    assert {one.chunk.content for one in everything} >= {f"fresh 11 {m}" for m in range(10)}
