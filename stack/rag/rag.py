"""Rag: what the RAG tool does, for routes, agents and jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from stack.engine.base import Inference
from stack.errors import BadRequest
from stack.files.files import Files
from stack.models.serving import Serving
from stack.rag.context import context_of, fitted
from stack.rag.ingest import Ingest
from stack.rag.load import Loader
from stack.rag.parse import Parser
from stack.rag.queries import QueryWriter, default_query, texts_of
from stack.rag.tokens import token_spans
from stack.schemas.content import InterleavedContent
from stack.schemas.tools import (
    DefaultRAGQueryGeneratorConfig,
    LLMRAGQueryGeneratorConfig,
    QueryRequest,
    RAGQueryConfig,
    RAGQueryResult,
)
from stack.settings import Settings
from stack.vector.databases import VectorDatabases
from stack.vector.params import MAX_CHUNKS, QueryParams
from stack.vector.store import ScoredChunk, VectorStore


class Rag:
    """`ingest` has the ways in, `query` is the way out."""

    def __init__(
        self,
        settings: Settings,
        files: Files,
        databases: VectorDatabases,
        vectors: VectorStore,
        serving: Serving,
    ) -> None:
        self._parser, self._writer = Parser(), QueryWriter()
        self._databases, self._vectors, self._serving = databases, vectors, serving
        self.ingest = Ingest(Loader(settings, files, self._parser), databases, vectors, serving)

    async def query(
        self, request: QueryRequest, provider_data: Mapping[str, Any] | None = None
    ) -> RAGQueryResult:
        """The chunks that fit best, as a context. Raises NotFound for an unknown vector database."""
        vector_db_ids = list(dict.fromkeys(request.vector_db_ids))
        if not vector_db_ids:
            raise BadRequest("vector_db_ids is empty: name the vector databases to search")
        config = request.query_config or RAGQueryConfig(
            query_generator_config=DefaultRAGQueryGeneratorConfig()
        )
        if config.max_chunks > MAX_CHUNKS:
            raise BadRequest(f"query_config.max_chunks is at most {MAX_CHUNKS}, not {config.max_chunks}")
        for vector_db_id in vector_db_ids:
            await self._databases.get(vector_db_id)  # before a model is asked
        query = await self._query_of(config, request.content, provider_data)
        found = await self._vectors.query(vector_db_ids, query, QueryParams(max_chunks=config.max_chunks))
        tokens = await self._token_counts(found)
        return context_of(fitted(found, tokens, config.max_tokens_in_context))

    async def _query_of(
        self, config: RAGQueryConfig, content: InterleavedContent, provider_data: Mapping[str, Any] | None
    ) -> InterleavedContent:
        generator = config.query_generator_config
        if isinstance(generator, LLMRAGQueryGeneratorConfig):

            async def model() -> Inference:
                return await self._serving(generator.model, "llm", provider_data)

            return await self._writer.write(generator, content, model)
        return default_query(generator, content)

    async def _token_counts(self, found: Sequence[ScoredChunk]) -> list[int]:
        """From the chunks' metadata; those of chunks that came without are counted."""
        counts = [_told_tokens(scored) for scored in found]
        for vector_db_id in {s.vector_db_id for s, count in zip(found, counts, strict=True) if count is None}:
            database = await self._databases.get(vector_db_id)
            model = await self._serving(database.embedding_model, "embedding")
            places = [
                i
                for i, scored in enumerate(found)
                if counts[i] is None and scored.vector_db_id == vector_db_id
            ]
            texts = [" ".join(texts_of(found[i].chunk.content)) for i in places]
            for i, spans in zip(places, await token_spans(model, texts), strict=True):
                counts[i] = len(spans)
        return [count or 0 for count in counts]

    async def close(self) -> None:
        await asyncio.to_thread(self._parser.close)
        await asyncio.to_thread(self._writer.close)


@asynccontextmanager
async def open_rag(
    settings: Settings, files: Files, databases: VectorDatabases, vectors: VectorStore, serving: Serving
) -> AsyncGenerator[Rag]:
    rag = Rag(settings, files, databases, vectors, serving)
    try:
        yield rag
    finally:
        await rag.close()


def _told_tokens(scored: ScoredChunk) -> int | None:
    count = scored.chunk.metadata.get("token_count")
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None
