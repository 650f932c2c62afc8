"""Documents -> chunks in a vector database: at once for a route, some at a time for a job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence

from stack.engine.base import Priority
from stack.errors import BadRequest
from stack.models.serving import Serving
from stack.rag.chunk import Spans, split
from stack.rag.load import Loaded, Loader
from stack.rag.tokens import token_spans
from stack.schemas.common import JsonObject
from stack.schemas.tools import RAGDocument
from stack.schemas.vector_io import Chunk
from stack.vector.databases import VectorDatabases
from stack.vector.store import VectorStore

LOADS_AT_A_TIME = 8
MAX_CHARS_AT_ONCE = 8 << 20
"""Text that an interactive request may wait for, wherever it comes from."""

MAX_CHUNKS_AT_ONCE = 20_000  # as with characters
MAX_CHUNKS = 200_000  # of one document, all of which are held in memory
MAX_METADATA_CHARS = 64 << 10  # as JSON; each of a document's chunks has it


class TooMuchAtOnce(BadRequest):
    """Documents that were small in the request turned out large."""

    title = "Too Much At Once"

    def __str__(self) -> str:
        return "the documents have more text than can be inserted at once: insert fewer, or larger chunks"


class Ingest:
    def __init__(
        self, loader: Loader, databases: VectorDatabases, vectors: VectorStore, serving: Serving
    ) -> None:
        self.loader, self._databases = loader, databases
        self._vectors, self._serving = vectors, serving

    async def insert(self, vector_db_id: str, documents: Sequence[RAGDocument], chunk_size: int) -> None:
        """All or, with an error that names the document, nothing. Replaces what these documents had."""
        check_ids(documents)
        await self._databases.get(vector_db_id)  # before anything is fetched
        budget, slots = _Budget(), asyncio.Semaphore(LOADS_AT_A_TIME)

        async def load(document: RAGDocument) -> Loaded:
            async with slots:
                loaded = await self.loader.load(document)
            budget.take(loaded)
            return loaded

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(load(document)) for document in documents]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        loaded = [task.result() for task in tasks]
        await self._store(vector_db_id, loaded, chunk_size, Priority.INTERACTIVE)

    async def store(self, vector_db_id: str, loaded: Sequence[Loaded], chunk_size: int) -> list[int]:
        """Split, embed and store what a job's workers loaded; may be repeated. Returns each one's chunks."""
        counts: list[int] = []
        for part in _parts(loaded):
            counts += await self._store(vector_db_id, part, chunk_size, Priority.BATCH)
        return counts

    async def _store(
        self, vector_db_id: str, documents: Sequence[Loaded], chunk_size: int, priority: Priority
    ) -> list[int]:
        database = await self._databases.get(vector_db_id)
        model = await self._serving(database.embedding_model, "embedding")
        spans = await token_spans(model, [document.text for document in documents])
        if priority is Priority.INTERACTIVE and sum(map(len, spans)) // chunk_size > MAX_CHUNKS_AT_ONCE:
            raise TooMuchAtOnce
        each = await asyncio.to_thread(_chunks_of_all, documents, spans, chunk_size)
        chunks = [chunk for its in each for chunk in its]
        ids = [document.document.document_id for document in documents]
        await self._vectors.insert(vector_db_id, chunks, documents=ids, priority=priority)
        return [len(its) for its in each]


def check_ids(documents: Sequence[RAGDocument]) -> None:
    """Each document once, named, and with metadata that its chunks can carry."""
    seen: set[str] = set()
    for number, document in enumerate(documents):
        if not document.document_id.strip():
            raise BadRequest(f"documents.{number}.document_id is empty")
        if document.document_id in seen:
            raise BadRequest(f"documents.{number}.document_id: {document.document_id!r} comes twice")
        seen.add(document.document_id)
        if (size := len(json.dumps(document.metadata, ensure_ascii=False))) > MAX_METADATA_CHARS:
            raise BadRequest(
                f"documents.{number}.metadata has {size} characters as JSON, at most {MAX_METADATA_CHARS} "
                "are stored with each chunk"
            )


def chunks_of(loaded: Loaded, spans: Spans, chunk_size: int) -> list[Chunk]:
    """A document's chunks, each with the document's metadata and where it stands in it. Images come last."""
    common = dict(loaded.document.metadata)
    if loaded.title is not None:
        common.setdefault("title", loaded.title)
    common["document_id"] = loaded.document.document_id
    if len(spans) // chunk_size > MAX_CHUNKS:
        raise BadRequest(
            f"document {loaded.document.document_id!r}: it has {len(spans)} tokens, which are more than "
            f"{MAX_CHUNKS} chunks of {chunk_size}: ask for larger ones"
        )
    chunks: list[Chunk] = []
    for piece in split(loaded.text, spans, chunk_size):
        place: JsonObject = {
            "token_count": piece.tokens,
            "chunk_index": len(chunks),
            "char_start": piece.start,
            "char_end": piece.end,
        }
        chunks.append(Chunk(content=loaded.text[piece.start : piece.end], metadata=common | place))
    for image in loaded.images:
        place = {"token_count": 0, "chunk_index": len(chunks)}
        chunks.append(Chunk(content=image, metadata=common | place))
    if "chunk_id" in common:  # by which a vector database tells chunks apart
        for index, chunk in enumerate(chunks):
            chunk.metadata["chunk_id"] = f"{common['chunk_id']}:{index}"
    if not chunks:
        raise BadRequest(f"document {loaded.document.document_id!r}: it has no text")
    return chunks


def _chunks_of_all(loaded: Sequence[Loaded], spans: Sequence[Spans], chunk_size: int) -> list[list[Chunk]]:
    return [chunks_of(each, its, chunk_size) for each, its in zip(loaded, spans, strict=True)]


class _Budget:
    def __init__(self) -> None:
        self._left = MAX_CHARS_AT_ONCE

    def take(self, loaded: Loaded) -> None:
        self._left -= len(loaded.text)
        if self._left < 0:
            raise TooMuchAtOnce


def _parts(loaded: Sequence[Loaded]) -> Iterator[list[Loaded]]:
    """As many documents at a time as may be held at once."""
    part: list[Loaded] = []
    chars = 0
    for document in loaded:
        if part and chars + len(document.text) > MAX_CHARS_AT_ONCE:
            yield part
            part, chars = [], 0
        part.append(document)
        chars += len(document.text)
    if part:
        yield part
