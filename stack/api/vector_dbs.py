"""VectorDBs: register, list, get and delete vector databases."""

from __future__ import annotations

from stack.api.routing import api_router
from stack.context import CurrentStack
from stack.schemas.vector_dbs import ListVectorDBsResponse, RegisterVectorDbRequest, VectorDB

router = api_router("VectorDBs")


@router.get("/v1/vector-dbs")
async def list_vector_dbs(stack: CurrentStack) -> ListVectorDBsResponse:
    """All vector databases."""
    return ListVectorDBsResponse(data=await stack.vector_dbs.list())


@router.post("/v1/vector-dbs")
async def register_vector_db(request: RegisterVectorDbRequest, stack: CurrentStack) -> VectorDB:
    """Register a vector database. Its dimension is the embedding model's."""
    return await stack.vector_dbs.register(request)


@router.get("/v1/vector-dbs/{vector_db_id:path}")
async def get_vector_db(vector_db_id: str, stack: CurrentStack) -> VectorDB:
    """Get a vector database."""
    return await stack.vector_dbs.get(vector_db_id)


@router.delete("/v1/vector-dbs/{vector_db_id:path}")
async def delete_vector_db(vector_db_id: str, stack: CurrentStack) -> None:
    """Unregister a vector database and free its disk."""
    await stack.vector_dbs.delete(vector_db_id)
