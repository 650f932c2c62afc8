"""Registered resources of one type (models, shields, …): what register, list, get and delete work on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import delete, select

from stack.errors import AlreadyRegistered, BadRequest, NotFound
from stack.store.database import Database
from stack.store.tables import ID_LENGTH, resources


class Resource(Protocol):
    """A wire type with an `identifier` and a constant `type`."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]: ...

    @property
    def identifier(self) -> str: ...

    def model_dump_json(self) -> str: ...

    @classmethod
    def model_validate_json(cls, json_data: str | bytes) -> Any: ...


R = TypeVar("R", bound=Resource)


class Registry(Generic[R]):
    """Resources are registered by callers over HTTP, or declared by the operator in a configuration file.

    What is declared cannot be deleted or changed by callers.
    """

    def __init__(self, database: Database, resource: type[R]) -> None:
        self._database = database
        self._resource = resource
        self.kind: str = resource.model_json_schema()["properties"]["type"]["const"]

    async def register(self, resource: R) -> R:
        """Add a resource. Again with equal contents is fine, with other contents AlreadyRegistered."""
        identifier = checked_id(self.kind, resource.identifier)
        insert = self._database.insert(resources).on_conflict_do_nothing()
        body = None
        while body is None:  # more than once only if another process deletes it between the two statements
            async with self._database.write() as connection:
                await connection.execute(insert, self._row(resource, declared=False))
                body = await connection.scalar(select(resources.c.body).where(*self._key(identifier)))
        stored = self._parse(body)
        if stored != resource:
            raise AlreadyRegistered(self.kind, identifier)
        return stored

    async def declare(self, resource: R) -> None:
        """Add or replace a resource by the operator's word, which goes before a caller's."""
        checked_id(self.kind, resource.identifier)
        insert = self._database.insert(resources)
        update = {"body": insert.excluded.body, "declared": insert.excluded.declared}
        upsert = insert.on_conflict_do_update(
            index_elements=[resources.c.type, resources.c.identifier], set_=update
        )
        async with self._database.write() as connection:
            await connection.execute(upsert, self._row(resource, declared=True))

    async def retract(self, identifier: str) -> None:
        """Undo `declare`; nothing happens if the resource is not declared."""
        key = self._key(checked_id(self.kind, identifier))
        async with self._database.write() as connection:
            await connection.execute(delete(resources).where(*key, resources.c.declared))

    async def get(self, identifier: str) -> R:
        """Raises NotFound."""
        key = self._key(checked_id(self.kind, identifier))
        async with self._database.read() as connection:
            body = await connection.scalar(select(resources.c.body).where(*key))
        if body is None:
            raise NotFound(self.kind, identifier)
        return self._parse(body)

    async def list(self, *, declared: bool | None = None) -> list[R]:
        """All resources, or those (not) declared, in the order of their identifiers."""
        query = select(resources.c.body).where(resources.c.type == self.kind)
        if declared is not None:
            query = query.where(resources.c.declared == declared)
        async with self._database.read() as connection:
            bodies = (await connection.scalars(query)).all()
        return sorted(map(self._parse, bodies), key=lambda resource: resource.identifier)

    async def delete(self, identifier: str) -> None:
        """Raises NotFound, or BadRequest if the resource is declared."""
        key = self._key(checked_id(self.kind, identifier))
        async with self._database.write() as connection:
            declared = await connection.scalar(select(resources.c.declared).where(*key).with_for_update())
            if declared is None:
                raise NotFound(self.kind, identifier)
            if declared:
                raise BadRequest(
                    f"{self.kind} {identifier!r} is declared in the server's configuration (stack.yaml): "
                    "remove it there and deploy the file again"
                )
            await connection.execute(delete(resources).where(*key, ~resources.c.declared))

    def _parse(self, body: str) -> R:
        resource: R = self._resource.model_validate_json(body)
        return resource

    def _key(self, identifier: str) -> tuple[Any, Any]:
        return resources.c.type == self.kind, resources.c.identifier == identifier

    def _row(self, resource: R, *, declared: bool) -> dict[str, Any]:
        return {
            "type": self.kind,
            "identifier": resource.identifier,
            "body": resource.model_dump_json(),
            "declared": declared,
            "created_at": datetime.now(UTC),
        }


def checked_id(kind: str, identifier: str) -> str:
    """The identifier, if it can be stored, put in a URL and printed. Raises BadRequest."""
    name = kind.replace("_", " ")
    if not identifier:
        raise BadRequest(f"the {name}'s identifier is empty: give it a name")
    if len(identifier) > ID_LENGTH:
        raise BadRequest(
            f"the {name}'s identifier {identifier[:40]!r}… has {len(identifier)} characters, "
            f"at most {ID_LENGTH} are allowed"
        )
    if bad := next((c for c in identifier if c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff"), None):
        raise BadRequest(
            f"the {name}'s identifier {identifier!r} has the character U+{ord(bad):04X}, which is not allowed"
        )
    return identifier
