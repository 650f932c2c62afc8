"""Files in buckets. SQL is the truth: a file exists when its row does; its bytes are those of its blob."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from stack.errors import NotFound, StackError
from stack.files.blobs import Blobs
from stack.files.names import check_bucket, check_key
from stack.store.database import Database
from stack.store.tables import files


class NoFile(NotFound):
    def __init__(self, bucket: str, key: str) -> None:
        StackError.__init__(self, bucket, key)

    def __str__(self) -> str:
        return "there is no file {1!r} in the bucket {0!r}".format(*self.args)


@dataclass(frozen=True, slots=True)
class StoredFile:
    bucket: str
    key: str
    blob: str  # another one whenever the contents are
    mime_type: str
    size: int
    created_at: datetime


class Files:
    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database, self._blobs = database, blobs

    async def get(self, bucket: str, key: str) -> StoredFile:
        """Raises NoFile."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(files).where(*_named(bucket, key)))).first()
        if row is None:
            raise NoFile(bucket, key)
        return StoredFile(*row)

    async def read(self, file: StoredFile, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The contents from `start` to before `end`, in blocks. Raises Lost, if it is deleted meanwhile."""
        async for block in self._blobs.read(file.blob, start, file.size if end is None else end):
            yield block

    async def in_bucket(self, bucket: str) -> list[StoredFile]:
        """All files of a bucket, in the order of their keys. A bucket that was never used has none."""
        query = select(files).where(files.c.bucket == check_bucket(bucket))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return sorted((StoredFile(*row) for row in rows), key=lambda file: file.key)

    async def buckets(self, prefix: str = "") -> list[str]:
        """The names of all buckets that have files and begin with `prefix`, in order."""
        query = select(files.c.bucket).distinct()
        if prefix:
            # Not LIKE, for which SQLite takes upper and lower case as the same.
            query = query.where(func.substr(files.c.bucket, 1, len(prefix)) == check_bucket(prefix))
        async with self._database.read() as connection:
            return sorted((await connection.scalars(query)).all())

    async def delete(self, bucket: str, key: str) -> StoredFile:
        """Take a file away and free its bytes. Raises NoFile."""
        async with self._database.write() as connection:
            query = delete(files).where(*_named(bucket, key)).returning(*files.c)
            row = (await connection.execute(query)).first()
            if row is None:
                raise NoFile(bucket, key)
            file = StoredFile(*row)
            freed = await self._blobs.forget(connection, file.blob)
        await self._blobs.free(freed)
        return file

    async def put(self, connection: AsyncConnection, file: StoredFile) -> list[str]:
        """Let a file appear, whose blob is complete, in the place of another of that key.

        The other's objects are to be freed after the commit.
        """
        named, row = _named(file.bucket, file.key), asdict(file)
        replaced = None
        while replaced is None:  # again only if another process deletes the file between the two statements
            await connection.execute(self._database.insert(files).on_conflict_do_nothing(), row)
            replaced = await connection.scalar(select(files.c.blob).where(*named).with_for_update())
        if replaced == file.blob:
            return []
        await connection.execute(update(files).where(*named).values(row))
        return await self._blobs.forget(connection, replaced)


def _named(bucket: str, key: str) -> tuple[Any, Any]:
    return files.c.bucket == check_bucket(bucket), files.c.key == check_key(key)
