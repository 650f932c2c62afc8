"""Ingestion of many documents, by a job: workers fetch and parse, live replicas embed, this process stores.

    documents.jsonl -> places in the file -> workers: fetch, parse -> this process: split, embed, store

Memory is bounded: a worker reads its documents from the file, and this process takes more of them only when
it has stored earlier ones. A document is noted as finished once its chunks are stored, and these replace
those of an earlier attempt; so after a kill the job goes on with the others, and no document is there twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from stack.batch.rolling import patiently
from stack.errors import TRANSIENT, StackError
from stack.jobs.context import JobContext
from stack.rag.job import documents_path
from stack.rag.load import Loaded
from stack.store.storage import Storage

WRITES_AT_A_TIME = 3  # each of some documents: the replicas always have the next call waiting
PATIENCE_S = 120.0  # with a model that is overloaded or being replaced


@dataclass(frozen=True, slots=True)
class Place:
    """Where in documents.jsonl a document stands. `item` is its line's number."""

    item: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a worker made of a document: its contents, or why it has none."""

    item: int
    loaded: Loaded | None
    error: str | None = None


Load = Callable[[str, Sequence[Place]], AsyncGenerator[list[Outcome]]]
"""The documents at places of the file at a path of the storage, some at a time, in any order."""

Store = Callable[[str, Sequence[Loaded], int], Awaitable[list[int]]]
"""`Ingest.store`: into a vector database, in chunks of so many tokens; returns how many each document has."""


async def ingest(context: JobContext, storage: Storage, load: Load, store: Store) -> dict[str, Any]:
    """Ingest what no earlier attempt has. The result counts documents, chunks, and documents that failed."""
    path = documents_path(context.job.id)
    done = {item.item: (item.result or {}).get("chunks", 0) async for item in context.finished_items()}
    places = [place async for place in find_places(storage, path) if place.item not in done]
    ingestion = _Ingestion(context, store, done)
    if places:
        await ingestion.run(load(path, places))
    finished, failed = await context.counts()
    return {"documents": finished - failed, "failed": failed, "chunks": ingestion.chunks}


async def find_places(storage: Storage, path: str) -> AsyncGenerator[Place]:
    """The lines of a file, read a block at a time."""
    item = start = position = 0
    async for block in storage.blocks(path):
        offset = 0
        while (end := block.find(b"\n", offset)) >= 0:
            yield Place(item, start, position + end)
            offset, start, item = end + 1, position + end + 1, item + 1
        position += len(block)


class _Ingestion:
    """One attempt: outcomes of workers come in, some groups of documents are being written at any time."""

    def __init__(self, context: JobContext, store: Store, done: dict[int, int]) -> None:
        self._context, self._store = context, store
        request = context.job.request
        self._vector_db_id: str = request["vector_db_id"]
        self._chunk_size: int = request["chunk_size_in_tokens"]
        self._done, self._total = len(done), request["documents"]
        self.chunks = sum(done.values())
        self._show()

    async def run(self, loaded: AsyncGenerator[list[Outcome]]) -> None:
        free = asyncio.Semaphore(WRITES_AT_A_TIME)
        try:
            async with aclosing(loaded), asyncio.TaskGroup() as group:
                async for outcomes in loaded:
                    await free.acquire()
                    task = group.create_task(self._finish(outcomes))
                    task.add_done_callback(lambda _: free.release())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _finish(self, outcomes: Sequence[Outcome]) -> None:
        errors = {outcome.item: outcome.error for outcome in outcomes if outcome.error is not None}
        good = {outcome.item: outcome.loaded for outcome in outcomes if outcome.loaded is not None}
        try:
            await self._keep(good)
        except TRANSIENT:
            raise
        except StackError:
            await self._one_by_one(good, errors)
        await self._context.fail_items(errors)
        self._done += len(outcomes)
        self._show()

    async def _keep(self, good: dict[int, Loaded]) -> None:
        if not good:
            return
        documents = list(good.values())
        store = partial(self._store, self._vector_db_id, documents, self._chunk_size)
        chunks = await patiently(store, PATIENCE_S)
        counts = dict(zip(good, chunks, strict=True))
        await self._context.finish_items({item: {"chunks": count} for item, count in counts.items()})
        self.chunks += sum(chunks)

    async def _one_by_one(self, good: dict[int, Loaded], errors: dict[int, str]) -> None:
        """One of these documents is refused: find out which, and keep the others."""
        for item, loaded in good.items():
            try:
                await self._keep({item: loaded})
            except TRANSIENT:
                raise
            except StackError as error:
                errors[item] = str(error)

    def _show(self) -> None:
        self._context.progress(done=self._done, total=self._total, unit="documents", chunks=self.chunks)
