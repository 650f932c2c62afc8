"""Ingestion as a job, with loading and storing replaced by ones that fail as the test asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path

import pytest

from stack.errors import BadRequest, Overloaded
from stack.jobs.context import JobContext
from stack.rag import bulk, job
from stack.rag.bulk import Outcome, Place
from stack.rag.load import Loaded
from stack.schemas.tools import InsertRequest, RAGDocument
from stack.schemas.vector_dbs import VectorDB
from stack.settings import Settings
from stack.store.database import Database, open_database
from stack.store.job_items import JobItems
from stack.store.jobs import Job, Jobs
from stack.store.storage import Storage, open_storage


class Databases:
    async def get(self, identifier: str, /) -> VectorDB:
        return VectorDB(
            identifier=identifier,
            provider_resource_id=identifier,
            provider_id="lancedb",
            embedding_model="m",
            embedding_dimension=3,
        )


class Bench:
    """Stores, a job, and a vector store that is a dict."""

    def __init__(self, settings: Settings, database: Database, storage: Storage) -> None:
        self.settings, self.database, self.storage = settings, database, storage
        self.jobs = Jobs(database)
        self.stored: dict[str, int] = {}
        self.calls, self.at_once, self.most_at_once = 0, 0, 0
        self.refused: set[str] = set()
        self.overloaded = 0

    async def submit(self, count: int) -> Job:
        documents = [
            RAGDocument(document_id=f"d{n}", content=f"über {n}\n" * n, metadata={"n": n})
            for n in range(count)
        ]
        request = InsertRequest(documents=documents, vector_db_id="v", chunk_size_in_tokens=32)
        return await job.submit(request, self.jobs, self.storage, Databases())

    async def load(self, path: str, places: Sequence[Place]) -> AsyncGenerator[list[Outcome]]:
        for first in range(0, len(places), 4):
            outcomes = []
            for place in places[first : first + 4]:
                line = await self.storage.read(path, place.start, place.end)
                document = RAGDocument.model_validate_json(line)
                if document.metadata["n"] == 5:
                    outcomes.append(Outcome(place.item, None, "document 'd5': it has no text"))
                else:
                    outcomes.append(Outcome(place.item, Loaded(document, str(document.content), None)))
            yield outcomes

    async def store(self, vector_db_id: str, documents: Sequence[Loaded], chunk_size: int) -> list[int]:
        assert (vector_db_id, chunk_size) == ("v", 32)
        if self.overloaded:
            self.overloaded -= 1
            raise Overloaded("too many requests waiting")
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.01)
        self.at_once -= 1
        ids = [loaded.document.document_id for loaded in documents]
        if bad := self.refused & set(ids):
            raise BadRequest(f"document {bad.pop()!r}: too long")
        for document_id in ids:
            self.stored[document_id] = self.stored.get(document_id, 0) + 1
        return [1] * len(ids)

    async def run(self, job_id: str) -> dict[str, object]:
        lease = await self.jobs.claim(job_id, "here")
        self.context = JobContext(self.settings, self.database, lease)
        try:
            return await bulk.ingest(self.context, self.storage, self.load, self.store)
        finally:
            await self.jobs.renew(lease, self.context.shown)
            await self.jobs.release(lease)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    settings = Settings(home=tmp_path / "home")
    async with open_database(settings) as database, open_storage(settings) as storage:
        yield Bench(settings, database, storage)


async def test_all_documents_are_stored_some_at_a_time(bench: Bench) -> None:
    submitted = await bench.submit(40)
    assert await bench.run(submitted.id) == {"documents": 39, "failed": 1, "chunks": 39}
    assert bench.stored == {f"d{n}": 1 for n in range(40) if n != 5}
    assert 2 <= bench.most_at_once <= bulk.WRITES_AT_A_TIME
    assert bench.context.shown == {"done": 40, "total": 40, "unit": "documents", "chunks": 39}
    failed = await JobItems(bench.database).page(submitted.id, failed=True)
    assert [(item.item, item.error) for item in failed] == [(5, "document 'd5': it has no text")]


async def test_it_goes_on_with_what_is_left(bench: Bench) -> None:
    submitted = await bench.submit(40)
    lease = await bench.jobs.claim(submitted.id, "earlier")
    await JobItems(bench.database).finish(lease, {n: {"chunks": 1} for n in range(0, 40, 2)})
    await bench.jobs.release(lease)
    assert await bench.run(submitted.id) == {"documents": 39, "failed": 1, "chunks": 39}
    assert set(bench.stored) == {f"d{n}" for n in range(1, 40, 2) if n != 5}
    again = await bench.run(submitted.id)
    assert again == {"documents": 39, "failed": 1, "chunks": 39}
    assert len(bench.stored) == 19


async def test_a_refused_document_does_not_keep_out_its_neighbours(bench: Bench) -> None:
    bench.refused = {"d9", "d10", "d30"}
    submitted = await bench.submit(32)
    result = await bench.run(submitted.id)
    assert result == {"documents": 28, "failed": 4, "chunks": 28}
    failed = await JobItems(bench.database).page(submitted.id, failed=True)
    assert [item.item for item in failed] == [5, 9, 10, 30]
    assert set(bench.stored.values()) == {1}


async def test_an_overloaded_model_is_waited_for(bench: Bench) -> None:
    bench.overloaded = 2
    submitted = await bench.submit(8)
    assert (await bench.run(submitted.id))["documents"] == 7


async def test_patience_ends(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "PATIENCE_S", 0.0)
    bench.overloaded = 1000
    with pytest.raises(Overloaded):
        await bench.run((await bench.submit(8)).id)
    assert bench.stored == {}


async def test_places_of_lines_across_blocks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stack.store.storage.BLOCK_BYTES", 7)
    lines = [b"x" * length for length in (0, 3, 7, 8, 20, 1)]
    await bench.storage.write("jobs/j/documents.jsonl", b"\n".join(lines) + b"\n")
    places = [place async for place in bulk.find_places(bench.storage, "jobs/j/documents.jsonl")]
    read = [
        await bench.storage.read("jobs/j/documents.jsonl", p.start, p.end) for p in places if p.end > p.start
    ]
    assert [place.item for place in places] == list(range(6))
    assert read == [line for line in lines if line]
