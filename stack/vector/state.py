"""The registry's entry of a vector database with its table and index, in one SQL query."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

from sqlalchemy import bindparam, delete, select, update

from stack.errors import NotFound
from stack.schemas.vector_dbs import VectorDB
from stack.store.database import Database
from stack.store.registry import checked_id
from stack.store.tables import resources, vector_indexes

PREFIX = "vectors-"  # of all our tables' names

IndexKind = Literal["flat", "ivf_flat", "ivf_sq"]


@dataclass(frozen=True, slots=True)
class IndexState:
    """What maintenance found and chose. `flat` has no vector index: every vector is compared."""

    kind: IndexKind = "flat"
    nprobes: int = 0  # partitions that a query looks into
    refine_factor: int = 0  # candidates a result that are compared exactly, of a quantised index
    recall: float | None = None  # recall@10 against exact search, when last measured
    trained_rows: int = 0  # rows when the partitions were made
    measured_rows: int = 0
    measured_at: float = 0.0  # seconds since 1970
    rows: int = 0
    fragments: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Located:
    """A vector database and where its chunks are. `expires`: some were inserted to live for a time."""

    vector_db: VectorDB
    table_name: str
    expires: bool
    index: IndexState

    @property
    def lock_name(self) -> str:
        """For Database.lock. Of 256, since each may be a file."""
        return PREFIX + self.table_name[-2:]


_FIND_ALL = (
    select(resources.c.body, vector_indexes.c.table_name, vector_indexes.c.expires, vector_indexes.c.state)
    .select_from(resources.join(vector_indexes, resources.c.identifier == vector_indexes.c.vector_db_id))
    .where(resources.c.type == "vector_db")
)
_FIND = _FIND_ALL.where(resources.c.identifier == bindparam("identifier"))


class VectorIndexes:
    """Rows of the table `vector_indexes`. One is there before its resource, and gone before it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim_table(self, vector_db_id: str) -> str:
        """The name of the database's table, made up if it has none."""
        row = {
            "vector_db_id": checked_id("vector_db", vector_db_id),
            "table_name": f"{PREFIX}{uuid4().hex}",
            "expires": False,
            "state": json.dumps(asdict(IndexState())),
            "updated_at": datetime.now(UTC),
        }
        query = select(vector_indexes.c.table_name).where(vector_indexes.c.vector_db_id == vector_db_id)
        async with self._database.write() as connection:
            await connection.execute(self._database.insert(vector_indexes).on_conflict_do_nothing(), row)
            return str(await connection.scalar(query))

    async def release(self, vector_db_id: str) -> str | None:
        """Forget the table; its name, if there was one."""
        key = vector_indexes.c.vector_db_id == vector_db_id
        async with self._database.write() as connection:
            name: str | None = await connection.scalar(select(vector_indexes.c.table_name).where(key))
            await connection.execute(delete(vector_indexes).where(key))
        return name

    async def find(self, vector_db_id: str) -> Located:
        """Raises NotFound."""
        key = {"identifier": checked_id("vector_db", vector_db_id)}
        async with self._database.read() as connection:
            row = (await connection.execute(_FIND, key)).one_or_none()
        if row is None:
            raise NotFound("vector_db", vector_db_id)
        return _located(row)

    async def find_all(self) -> list[Located]:
        async with self._database.read() as connection:
            rows = (await connection.execute(_FIND_ALL)).all()
        return sorted((_located(row) for row in rows), key=lambda found: found.vector_db.identifier)

    async def table_names(self) -> set[str]:
        async with self._database.read() as connection:
            return set((await connection.scalars(select(vector_indexes.c.table_name))).all())

    async def set_state(self, located: Located, state: IndexState) -> None:
        await self._update(located, state=json.dumps(asdict(state)), updated_at=datetime.now(UTC))

    async def set_expires(self, located: Located) -> None:
        """From now on, queries leave out what has expired."""
        await self._update(located, expires=True)

    async def _update(self, located: Located, **values: Any) -> None:
        query = update(vector_indexes).where(vector_indexes.c.table_name == located.table_name)
        async with self._database.write() as connection:
            await connection.execute(query.values(**values))


def _located(row: Any) -> Located:
    vector_db = VectorDB.model_validate_json(row.body)
    return Located(vector_db, row.table_name, row.expires, IndexState(**json.loads(row.state)))
