"""VectorStore: insert chunks into vector databases, and query several of them at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from stack.engine.base import Priority
from stack.errors import BadRequest, NotFound, NotReady
from stack.models.serving import Serving
from stack.schemas.content import ImageContentItem, InterleavedContent
from stack.schemas.vector_io import Chunk
from stack.store.database import Database
from stack.store.lance import Lance, TableGone, lance_errors
from stack.tracing import span
from stack.vector import search
from stack.vector.embedding import embed
from stack.vector.feedback import hybrid
from stack.vector.flat import FlatVectors
from stack.vector.params import Mode, QueryParams
from stack.vector.rows import chunk_id_of, document_of, items_of, text_of, to_chunk, to_table
from stack.vector.search import Hit
from stack.vector.state import Located, VectorIndexes

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.table import AsyncTable
    from numpy.typing import NDArray

MAX_TTL_S = 100 * 365 * 86_400
CANDIDATES = 100  # of each search, at least
READ_AGAIN = 3  # times, when rows were moved between finding and reading them
SAME_CANDIDATES = 20  # of each search, which may have the query's own text
SAME = 0.999  # similarity from which a text is compared with the query's


@dataclass(frozen=True, slots=True)
class ScoredChunk:
    chunk: Chunk
    score: float  # higher is better; see docs/vector.md for what it means in each mode
    vector_db_id: str


class VectorStore:
    def __init__(self, database: Database, lance: Lance, serving: Serving) -> None:
        self._database, self._lance, self._serving = database, lance, serving
        self._indexes = VectorIndexes(database)
        self._flat = FlatVectors()

    async def insert(
        self,
        vector_db_id: str,
        chunks: Sequence[Chunk],
        *,
        ttl_seconds: int | None = None,
        documents: Collection[str] = (),
        priority: Priority = Priority.INTERACTIVE,
    ) -> None:
        """Embed and add chunks, all or none. Raises NotFound, BadRequest.

        Replaced in the same commit are chunks of the same identity (see `rows.identity`), and every earlier
        chunk of the documents that `documents` names. `ttl_seconds`: the chunks are found for that long.
        """
        located = await self._indexes.find(vector_db_id)
        expires_at = _expiry(ttl_seconds)
        if not chunks and not documents:
            return
        _check(chunks)
        if not chunks:
            await self._replace(located, None, documents)
            return
        vectors = await embed(
            self._serving, located.vector_db, [chunk.content for chunk in chunks], "document", priority
        )
        rows = await asyncio.to_thread(to_table, chunks, vectors, expires_at)
        if expires_at is not None and not located.expires:
            await self._indexes.set_expires(located)
        await self._replace(located, rows, documents)

    async def _replace(self, located: Located, rows: pa.Table | None, documents: Collection[str]) -> None:
        async with self._present(located):
            table = await self._table(located)
            async with self._database.lock(located.lock_name):
                with lance_errors():
                    await _commit(table, rows, documents)

    async def query(
        self, vector_db_ids: Sequence[str], query: InterleavedContent, params: QueryParams
    ) -> list[ScoredChunk]:
        """At most params.max_chunks chunks, best first. Raises NotFound, BadRequest."""
        if not vector_db_ids:
            raise BadRequest("vector_db_ids is empty: name at least one vector database")
        names = list(dict.fromkeys(vector_db_ids))
        attributes = {"gen_ai.operation.name": "retrieval", "stack.vector_db_ids": names}
        with span(f"retrieval {', '.join(names)}"[:200], attributes) as current:
            found = await self._query(names, query, params)
            current.set_attribute("stack.chunks", len(found))
            return found

    async def _query(
        self, names: Sequence[str], query: InterleavedContent, params: QueryParams
    ) -> list[ScoredChunk]:
        located = [await self._indexes.find(name) for name in names]
        vectors = {} if params.mode is Mode.KEYWORD else await self._vectors(located, query)
        async with self._present(*located):
            tables = [(one, await self._table(one)) for one in located]
            for _ in range(READ_AGAIN):
                scored = await self._search(tables, vectors, text_of(query), params)
                if scored is not None:
                    return scored
        raise NotReady("the vector database is being reorganised; try again", 1)

    async def _vectors(
        self, located: Sequence[Located], query: InterleavedContent
    ) -> Mapping[str, NDArray[Any]]:
        """The query's vector of each embedding model."""
        by_model = {one.vector_db.embedding_model: one.vector_db for one in located}
        embedded = [embed(self._serving, vector_db, [query], "query") for vector_db in by_model.values()]
        vectors = await asyncio.gather(*embedded)
        return {model: rows[0] for model, rows in zip(by_model, vectors, strict=True)}

    async def _search(
        self,
        tables: Sequence[tuple[Located, AsyncTable]],
        vectors: Mapping[str, NDArray[Any]],
        text: str,
        params: QueryParams,
    ) -> list[ScoredChunk] | None:
        """None when rows were moved meanwhile."""
        depth = max(CANDIDATES, 2 * params.max_chunks)
        with lance_errors():
            near, shared = await asyncio.gather(
                self._nearest(tables, vectors, depth, params), _sharing_words(tables, text, depth, params)
            )
            ranked = _ranked(tables, vectors, near, shared, params)
            rows = await _read(tables, [hit for hit, _ in ranked])
        if len(rows) < len(ranked):
            return None
        names = {one.table_name: one.vector_db.identifier for one, _ in tables}
        scored = [ScoredChunk(to_chunk(rows[hit.key]), score, names[hit.table_name]) for hit, score in ranked]
        return _chosen(_equal_first(scored, text), params)

    async def _nearest(
        self,
        tables: Sequence[tuple[Located, AsyncTable]],
        vectors: Mapping[str, NDArray[Any]],
        depth: int,
        params: QueryParams,
    ) -> dict[str, list[Hit]]:
        """For each embedding model its databases' rows in one list: similarities of one model compare."""
        lists: dict[str, list[Hit]] = {model: [] for model in vectors}

        async def add(located: Located, table: AsyncTable, model: str) -> None:
            found = None
            if located.index.kind == "flat" and params.filters is None and not located.expires:
                found = await self._flat.nearest(table, located.table_name, vectors[model], depth)
            if found is None:
                found = await search.nearest(table, located, vectors[model], depth, params)
            lists[model] += found

        await asyncio.gather(
            *(add(one, table, one.vector_db.embedding_model) for one, table in tables if vectors)
        )
        return {model: _best(hits, depth) for model, hits in lists.items()}

    @asynccontextmanager
    async def _present(self, *located: Located) -> AsyncGenerator[None]:
        """NotFound for what LanceDB raises when another process has deleted a database meanwhile."""
        try:
            yield
        except RuntimeError:
            for one in located:
                await self._indexes.find(one.vector_db.identifier)
            raise

    async def _table(self, located: Located) -> AsyncTable:
        try:
            return await self._lance.table(located.table_name)
        except TableGone as error:
            raise NotFound("vector_db", located.vector_db.identifier) from error


async def _sharing_words(
    tables: Sequence[tuple[Located, AsyncTable]], text: str, depth: int, params: QueryParams
) -> list[Hit]:
    if params.mode is Mode.VECTOR:
        return []
    found = await asyncio.gather(
        *(search.sharing_words(table, one, text, depth, params) for one, table in tables)
    )
    return _best([hit for hits in found for hit in hits], depth)


def _best(hits: list[Hit], depth: int | None = None) -> list[Hit]:
    return sorted(hits, key=lambda hit: -hit.score)[:depth]


def _ranked(
    tables: Sequence[tuple[Located, AsyncTable]],
    vectors: Mapping[str, NDArray[Any]],
    near: Mapping[str, Sequence[Hit]],
    shared: Sequence[Hit],
    params: QueryParams,
) -> list[tuple[Hit, float]]:
    """The hits to read, best first: what is asked for, and whatever may be the query's own text."""
    found = [*shared, *(hit for hits in near.values() for hit in hits)]
    if params.mode is Mode.HYBRID:
        models = {one.table_name: one.vector_db.embedding_model for one, _ in tables}
        scores = hybrid(
            list(vectors.values()),
            [{hit.key: hit.vector for hit in near[model]} for model in vectors],
            [hit.key for hit in shared],
            [{hit.key: hit.vector for hit in shared if models[hit.table_name] == model} for model in vectors],
        )
        hits = {hit.key: hit for hit in found}
        ranked = [(hits[key], score) for key, score in scores]
    else:
        ranked = [(hit, hit.score) for hit in _best(found)]
    close = [hit for hits in near.values() for hit in hits[:SAME_CANDIDATES] if hit.score >= SAME]
    likely = {hit.key for hit in (*close, *shared[:SAME_CANDIDATES])}
    asked, rest = ranked[: params.max_chunks], ranked[params.max_chunks :]
    return asked + [pair for pair in rest if pair[0].key in likely]


async def _read(
    tables: Sequence[tuple[Located, AsyncTable]], hits: Sequence[Hit]
) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows by the hits' keys."""
    by_name: dict[str, list[Hit]] = {}
    for hit in hits:
        by_name.setdefault(hit.table_name, []).append(hit)
    read = [search.read(table, by_name[one.table_name]) for one, table in tables if one.table_name in by_name]
    return {key: row for rows in await asyncio.gather(*read) for key, row in rows.items()}


def _equal_first(scored: list[ScoredChunk], text: str) -> list[ScoredChunk]:
    """Chunks that say exactly what the query says, in front, with the best score there is."""
    wanted = text.strip()
    equal: list[ScoredChunk] = []
    rest: list[ScoredChunk] = []
    for one in scored:
        is_equal = wanted and text_of(one.chunk.content).strip() == wanted
        (equal if is_equal else rest).append(one)
    best = max((one.score for one in scored), default=0.0)
    return [replace(one, score=best) for one in equal] + rest


def _chosen(scored: list[ScoredChunk], params: QueryParams) -> list[ScoredChunk]:
    threshold = params.score_threshold
    kept = scored if threshold is None else [one for one in scored if one.score >= threshold]
    return kept[: params.max_chunks]


async def _commit(table: AsyncTable, rows: pa.Table | None, documents: Collection[str]) -> None:
    """Add the rows in one commit that also removes what they replace. The caller holds the table's lock."""
    of_documents = _in("document_id", sorted(documents)) if documents else "false"
    if rows is None:
        await table.delete(of_documents)
        return
    replaced = f"{of_documents} OR {_in('id', rows['id'].to_pylist())}"
    if (
        await table.count_rows() == 0
        or not await table.query().where(replaced).limit(1).select(["id"]).to_list()
    ):
        await table.add(rows)  # merging reads the whole table
        return
    merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
    if documents:
        merge = merge.when_not_matched_by_source_delete(of_documents)
    await merge.execute(rows)


def _in(column: str, values: Sequence[str]) -> str:
    quoted = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"{column} IN ({quoted})"


def _expiry(ttl_seconds: int | None) -> int | None:
    """Milliseconds since 1970."""
    if ttl_seconds is None:
        return None
    if not 0 < ttl_seconds <= MAX_TTL_S:
        raise BadRequest(
            f"ttl_seconds is 1 to {MAX_TTL_S}, or absent for chunks that stay; not {ttl_seconds}"
        )
    return int((datetime.now(UTC).timestamp() + ttl_seconds) * 1000)


def _check(chunks: Sequence[Chunk]) -> None:
    for index, chunk in enumerate(chunks):
        if not any(isinstance(item, ImageContentItem) for item in items_of(chunk.content)) and not (
            text_of(chunk.content).strip()
        ):
            raise BadRequest(f"chunks[{index}].content is empty: leave the chunk out, or give it a text")


def replaced_documents(chunks: Sequence[Chunk]) -> set[str]:
    """The documents that chunks stand for as a whole: those of chunks without a chunk_id of their own."""
    found = {document_of(chunk) for chunk in chunks if chunk_id_of(chunk) is None}
    return {document for document in found if document is not None}
