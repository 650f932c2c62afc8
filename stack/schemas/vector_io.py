"""VectorIO: chunks into and out of a vector store."""

from pydantic import Field

from stack.schemas.common import JsonObject, Schema
from stack.schemas.content import InterleavedContent


class Chunk(Schema):
    """A piece of a document."""

    content: InterleavedContent
    metadata: JsonObject


class InsertChunksRequest(Schema):
    vector_db_id: str
    chunks: list[Chunk]
    ttl_seconds: int | None = None


class QueryChunksRequest(Schema):
    vector_db_id: str
    query: InterleavedContent
    params: JsonObject | None = None


class QueryChunksResponse(Schema):
    chunks: list[Chunk]
    scores: list[float] = Field(description="One for each chunk, best first")
