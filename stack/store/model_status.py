"""How far each model's serving has come: written by the reconciler, read by the routes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, cast

from sqlalchemy import Row, bindparam, delete, or_, select

from stack.errors import NotFound
from stack.schemas.models import Model
from stack.store.database import Database
from stack.store.registry import checked_id
from stack.store.tables import model_status, resources

_FIND_ALL = (
    select(resources.c.body, model_status)
    .select_from(resources.outerjoin(model_status, resources.c.identifier == model_status.c.identifier))
    .where(resources.c.type == "model")
)
# Built once: building a statement costs as much as running it.
_FIND = _FIND_ALL.where(resources.c.identifier == bindparam("identifier"))

State = Literal["pending", "loading", "ready", "failed", "deleting"]


@dataclass(frozen=True, slots=True)
class ModelStatus:
    identifier: str
    state: State
    detail: str | None = None  # why it failed, or what it is doing
    description: dict[str, Any] = field(default_factory=dict)  # Inference.describe() of a replica
    updated_at: datetime | None = None


class ModelStatuses:
    """`find` and `find_all` take no status from a cluster other than the one whose `session` is given:
    after a restart, what the last cluster's reconciler wrote is void."""

    def __init__(self, database: Database, session: str | None = None) -> None:
        self._database, self._session = database, session

    async def set(
        self,
        identifier: str,
        state: State,
        detail: str | None = None,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a model's state; a row that says the same already is left as it is."""
        row = {
            "identifier": checked_id("model", identifier),
            "state": state,
            "detail": detail,
            "description": json.dumps(dict(description or {}), sort_keys=True),
            "updated_at": datetime.now(UTC),
        }
        insert = self._database.insert(model_status)
        new, old = insert.excluded, model_status.c
        upsert = insert.on_conflict_do_update(
            index_elements=[old.identifier],
            set_={name: new[name] for name in row if name != "identifier"},
            where=or_(
                *(old[name].is_distinct_from(new[name]) for name in ("state", "detail", "description"))
            ),
        )
        async with self._database.write() as connection:
            await connection.execute(upsert, row)

    async def get(self, identifier: str) -> ModelStatus | None:
        """None while the reconciler has not met the model yet."""
        query = select(model_status).where(model_status.c.identifier == checked_id("model", identifier))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else _status(row)

    async def delete(self, identifier: str) -> None:
        query = delete(model_status).where(model_status.c.identifier == checked_id("model", identifier))
        async with self._database.write() as connection:
            await connection.execute(query)

    async def find(self, identifier: str) -> tuple[Model, ModelStatus | None]:
        """A registered model with its status, in one query: every inference request asks. Raises NotFound."""
        key = {"identifier": checked_id("model", identifier)}
        row = await self._database.query(lambda connection: connection.execute(_FIND, key).one_or_none())
        if row is None:
            raise NotFound("model", identifier)
        return self._pair(row)

    async def find_all(self) -> list[tuple[Model, ModelStatus | None]]:
        """All registered models with their status, in the order of their identifiers."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_FIND_ALL)).all()
        return sorted(map(self._pair, rows), key=lambda pair: pair[0].identifier)

    async def registered_at(self, identifiers: Collection[str]) -> dict[str, datetime]:
        """When each of these models was registered; those that are not are left out."""
        query = select(resources.c.identifier, resources.c.created_at).where(
            resources.c.type == "model", resources.c.identifier.in_(identifiers)
        )
        async with self._database.read() as connection:
            return {row.identifier: row.created_at for row in await connection.execute(query)}

    def _pair(self, row: Row[Any]) -> tuple[Model, ModelStatus | None]:
        model = Model.model_validate_json(row.body)
        status = None if row.state is None else _status(row)
        if status is not None and status.description.get("session") != self._session:
            status = None
        return model, status

    async def list(self) -> list[ModelStatus]:
        async with self._database.read() as connection:
            rows = (await connection.execute(select(model_status).order_by(model_status.c.identifier))).all()
        return [_status(row) for row in rows]


def _status(row: Row[Any]) -> ModelStatus:
    return ModelStatus(
        row.identifier, cast(State, row.state), row.detail, json.loads(row.description), row.updated_at
    )
