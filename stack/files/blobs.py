"""Blobs: the bytes of files and of uploads. A blob is the objects that its rows in `file_parts` name.

An object is written before its row and deleted after it, each under a name of its own, so that no reader sees
half of one and no writer that was thought dead changes what another wrote.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from stack.errors import StackError
from stack.store.database import Database
from stack.store.storage import Lost, Storage
from stack.store.tables import file_parts

log = logging.getLogger(__name__)

FOLDER = "files"
PART_BYTES = 4 << 20
"""Largest object. The smaller, the less is lost of a broken upload, and the more objects there are."""


@dataclass(frozen=True, slots=True)
class Part:
    start: int
    size: int
    object: str

    @property
    def end(self) -> int:
        return self.start + self.size


class Blobs:
    def __init__(self, database: Database, storage: Storage) -> None:
        self._database, self._storage = database, storage

    async def write(self, blob: str, start: int, data: bytes) -> Part:
        """Store bytes that belong at `start`; they count once `replace` has committed them."""
        # Two letters of folder keep folders of a local disk small.
        part = Part(start, len(data), f"{FOLDER}/{blob[:2]}/{blob}-{start:x}-{token_hex(4)}")
        await self._storage.write(part.object, data)
        return part

    async def replace(self, connection: AsyncConnection, blob: str, part: Part) -> list[str]:
        """Make `part` the blob's last one. The objects that it replaces are to be freed after the commit."""
        freed = await self._forget(connection, blob, part.start)
        row = {"blob": blob, "start": part.start, "size": part.size, "object": part.object}
        await connection.execute(insert(file_parts), row)
        return freed

    async def forget(self, connection: AsyncConnection, blob: str) -> list[str]:
        """Take all of the blob's rows away. Its objects are to be freed after the commit."""
        return await self._forget(connection, blob, 0)

    async def free(self, objects: Iterable[str]) -> None:
        """Delete objects that no row names. What fails is left to the sweep: the caller's work is done."""
        try:
            await self._storage.delete(objects)
        except StackError as error:
            log.warning("objects of deleted files stay until the next sweep: %s", error)

    async def last_parts(self, blob: str, number: int) -> list[Part]:
        """The blob's last parts, in order."""
        query = select(file_parts.c.start, file_parts.c.size, file_parts.c.object)
        query = query.where(file_parts.c.blob == blob).order_by(file_parts.c.start.desc()).limit(number)
        async with self._database.read() as connection:
            return _parts((await connection.execute(query)).all())[::-1]

    async def read_part(self, part: Part, start: int = 0, end: int | None = None) -> bytes:
        """A part's bytes; `start` and `end` count within it. Raises Lost."""
        end = part.size if end is None else end
        data = await self._storage.read(part.object, start, end)
        if len(data) != end - start:
            raise Lost
        return data

    async def read(self, blob: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Bytes `start` to before `end`, in blocks of a part at most. Raises Lost."""
        query = select(file_parts.c.start, file_parts.c.size, file_parts.c.object).where(
            file_parts.c.blob == blob,
            file_parts.c.start < end,
            file_parts.c.start + file_parts.c.size > start,
        )
        async with self._database.read() as connection:
            parts = _parts((await connection.execute(query.order_by(file_parts.c.start))).all())
        for part in parts:
            if part.start > start:
                break
            if part.end > start:
                yield await self.read_part(part, start - part.start, min(end, part.end) - part.start)
                start = min(end, part.end)
        if start < end:
            raise Lost

    async def _forget(self, connection: AsyncConnection, blob: str, start: int) -> list[str]:
        rows = delete(file_parts).where(file_parts.c.blob == blob, file_parts.c.start >= start)
        return list((await connection.scalars(rows.returning(file_parts.c.object))).all())


def _parts(rows: Iterable[Any]) -> list[Part]:
    return [Part(*row) for row in rows]
