"""VectorDBs: the registry of vector stores."""

from typing import Literal

from pydantic import Field

from stack.schemas.common import Identifier, Schema


class VectorDB(Schema):
    identifier: str
    provider_resource_id: str
    provider_id: str
    type: Literal["vector_db"] = "vector_db"
    embedding_model: str
    embedding_dimension: int


class RegisterVectorDbRequest(Schema):
    vector_db_id: Identifier
    embedding_model: str
    embedding_dimension: int | None = Field(None, ge=1, description="Default: the embedding model's")
    provider_id: str | None = None
    provider_vector_db_id: str | None = None


class ListVectorDBsResponse(Schema):
    data: list[VectorDB]
