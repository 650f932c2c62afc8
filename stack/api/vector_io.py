"""VectorIO: chunks into and out of vector databases."""

from __future__ import annotations

from stack.api.routing import api_router
from stack.context import CurrentStack
from stack.schemas.vector_io import InsertChunksRequest, QueryChunksRequest, QueryChunksResponse
from stack.vector.params import parse_params
from stack.vector.store import replaced_documents

router = api_router("VectorIO")


@router.post("/v1/vector-io/insert")
async def insert_chunks(request: InsertChunksRequest, stack: CurrentStack) -> None:
    """Embed chunks and add them, all or none.

    They replace every earlier chunk of the documents that their `metadata.document_id` names. A chunk with a
    `metadata.chunk_id` replaces only the one of that name in its document.
    """
    await stack.vectors.insert(
        request.vector_db_id,
        request.chunks,
        ttl_seconds=request.ttl_seconds,
        documents=replaced_documents(request.chunks),
    )


@router.post("/v1/vector-io/query")
async def query_chunks(request: QueryChunksRequest, stack: CurrentStack) -> QueryChunksResponse:
    """The chunks that answer a query best. `params`: max_chunks, score_threshold, mode (vector, keyword or
    hybrid), filters, refine, exact."""
    params = parse_params(request.params)
    found = await stack.vectors.query([request.vector_db_id], request.query, params)
    return QueryChunksResponse(chunks=[one.chunk for one in found], scores=[one.score for one in found])
