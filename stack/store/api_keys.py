"""API keys: random secrets, shown once, of which the database has the SHA-256."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Row, delete, select
from sqlalchemy.exc import IntegrityError

from stack.errors import BadRequest, NotFound
from stack.settings import Settings
from stack.store.database import Database, open_database
from stack.store.tables import api_keys

PREFIX = "sk-stack-"
"""By which people and scanners for leaked secrets know a key."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")
_SECRET_BYTES = 32
_KNOWN_FOR_S = 5.0
_MAX_KNOWN = 4096


@dataclass(frozen=True, slots=True)
class ApiKey:
    name: str
    record_content: bool | None  # whether telemetry keeps what is said; None: as the server's settings say
    created_at: datetime


class ApiKeys:
    def __init__(self, database: Database, known_for_s: float = _KNOWN_FOR_S) -> None:
        """A key's row is read again after `known_for_s` seconds."""
        self._database, self._known_for_s = database, known_for_s
        self._known: dict[str, tuple[float, ApiKey | None]] = {}  # by digest: until when, and whose it is

    async def create(self, name: str, record_content: bool | None = None) -> str:
        """A new key, which nobody can look up later. Raises BadRequest for a name that is taken or odd."""
        if not _NAME.match(name):
            raise BadRequest(
                f"the key's name {name[:80]!r} is not allowed: write up to 64 letters, digits, '-', '_', '.' "
                "and '@', beginning with a letter or digit"
            )
        key = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        row = {
            "name": name,
            "digest": _digest(key),
            "record_content": record_content,
            "created_at": datetime.now(UTC),
        }
        try:
            async with self._database.write() as connection:
                await connection.execute(api_keys.insert(), row)
        except IntegrityError:
            raise BadRequest(f"there is a key {name!r} already: choose another name") from None
        return key

    async def list(self) -> list[ApiKey]:
        async with self._database.read() as connection:
            rows = await connection.execute(select(api_keys).order_by(api_keys.c.created_at))
            return [_api_key(row) for row in rows]

    async def delete(self, name: str) -> None:
        """Processes that have seen the key refuse it a few seconds later. Raises NotFound."""
        async with self._database.write() as connection:
            found = await connection.execute(delete(api_keys).where(api_keys.c.name == name))
        if not found.rowcount:
            raise NotFound("API key", name)
        self._known.clear()

    async def find(self, key: str) -> ApiKey | None:
        """The row of a key, at most `known_for_s` old; None: it is nobody's."""
        if not key.startswith(PREFIX):
            return None
        digest, now = _digest(key), time.monotonic()
        until, found = self._known.get(digest, (0.0, None))
        if until > now:
            return found
        async with self._database.read() as connection:
            rows = await connection.execute(select(api_keys).where(api_keys.c.digest == digest))
            row = rows.one_or_none()
        if len(self._known) >= _MAX_KNOWN:  # somebody guesses
            self._known.clear()
        found = None if row is None else _api_key(row)
        self._known[digest] = (now + self._known_for_s, found)
        return found


def _api_key(row: Row[tuple[object, ...]]) -> ApiKey:
    return ApiKey(row.name, row.record_content, row.created_at)


def _digest(key: str) -> str:
    """A plain hash suffices for 256 random bits."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


@asynccontextmanager
async def open_api_keys(settings: Settings) -> AsyncGenerator[ApiKeys]:
    """For a process without a stack."""
    async with open_database(settings) as database:
        yield ApiKeys(database)
