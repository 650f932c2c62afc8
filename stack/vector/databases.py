"""VectorDatabases: register, list, get and delete vector databases, each with a LanceDB table of its own."""

from __future__ import annotations

from stack.errors import BadRequest, NotFound
from stack.schemas.models import Model
from stack.schemas.vector_dbs import RegisterVectorDbRequest, VectorDB
from stack.store.database import Database
from stack.store.lance import Lance, lance_errors
from stack.store.model_status import ModelStatuses
from stack.store.registry import Registry
from stack.vector.rows import schema
from stack.vector.state import VectorIndexes

PROVIDER = "lancedb"
MAX_DIMENSION = 16_384
REGISTRATION_LOCK = "vector-databases"


class VectorDatabases:
    def __init__(self, database: Database, lance: Lance, models: ModelStatuses) -> None:
        self._registry, self._indexes = Registry(database, VectorDB), VectorIndexes(database)
        self._database, self._lance, self._models = database, lance, models
        self.list, self.get = self._registry.list, self._registry.get

    async def register(self, request: RegisterVectorDbRequest) -> VectorDB:
        """Raises BadRequest for an unknown model or provider, and a dimension that is not the model's."""
        if request.provider_id not in (None, PROVIDER):
            raise BadRequest(
                f"there is no vector_io provider {request.provider_id!r}, only {PROVIDER!r}; "
                "leave provider_id out"
            )
        vector_db = VectorDB(
            identifier=request.vector_db_id,
            provider_resource_id=request.provider_vector_db_id or request.vector_db_id,
            provider_id=PROVIDER,
            embedding_model=request.embedding_model,
            embedding_dimension=await self._dimension(request),
        )
        async with self._database.lock(REGISTRATION_LOCK):
            await self._forget_unregistered(vector_db.identifier)
            table_name = await self._indexes.claim_table(vector_db.identifier)
            await create_table(self._lance, table_name, vector_db.embedding_dimension)
            return await self._registry.register(vector_db)

    async def delete(self, vector_db_id: str) -> None:
        """Unregister a database and free its disk. Raises NotFound."""
        async with self._database.lock(REGISTRATION_LOCK):
            await self._registry.get(vector_db_id)
            table_name = await self._indexes.release(vector_db_id)
            await self._registry.delete(vector_db_id)
        if table_name is not None:
            await self._lance.drop(table_name)

    async def _forget_unregistered(self, vector_db_id: str) -> None:
        """A registration that was killed may have left a table of another dimension."""
        try:
            await self._registry.get(vector_db_id)
        except NotFound:
            if (table_name := await self._indexes.release(vector_db_id)) is not None:
                await self._lance.drop(table_name)

    async def _dimension(self, request: RegisterVectorDbRequest) -> int:
        try:
            model, status = await self._models.find(request.embedding_model)
        except NotFound as error:
            raise BadRequest(
                f"embedding_model {request.embedding_model!r} is not registered; GET /v1/models names those "
                "with model_type embedding"
            ) from error
        if model.model_type != "embedding":
            raise BadRequest(f"embedding_model {model.identifier!r} is a text model, which gives no vectors")
        known = _known_dimension(model, status.description if status else {})
        given = request.embedding_dimension
        if known is None and given is None:
            raise BadRequest(
                f"the dimension of {model.identifier!r} is known once it is ready; until then, say "
                "embedding_dimension"
            )
        if known is not None and given not in (None, known):
            raise BadRequest(
                f"embedding_dimension is {given}, but {model.identifier!r} gives {known} dimensions; "
                "leave the field out"
            )
        dimension = known or given or 0
        if dimension > MAX_DIMENSION:
            raise BadRequest(f"embedding_dimension is at most {MAX_DIMENSION}, not {dimension}")
        return dimension


def _known_dimension(model: Model, description: dict[str, object]) -> int | None:
    for source in (description, model.metadata):
        if isinstance(dimension := source.get("embedding_dimension"), int):
            return dimension
    return None


async def create_table(lance: Lance, name: str, dimension: int) -> None:
    """An empty table with its keyword index. Nothing happens to one that is there."""
    from lancedb.index import FTS

    with lance_errors():
        table = await lance.create(name, schema(dimension))
        if not await table.list_indices():
            await table.create_index("text", config=FTS(), name="text")
