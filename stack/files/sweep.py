"""Free what nobody will come back for: abandoned uploads, blobs without a file, objects without a blob."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, exists, select

from stack.files.blobs import FOLDER
from stack.store.database import Database
from stack.store.storage import TEMPORARY, Lost, Storage
from stack.store.tables import file_parts, files, uploads

log = logging.getLogger(__name__)

UPLOAD_AGE = timedelta(days=7)
OBJECT_AGE = timedelta(days=1)
"""A younger object may be one whose row is about to be committed."""
BATCH = 500


@dataclass(frozen=True, slots=True)
class Swept:
    uploads: int
    objects: int


async def sweep(
    database: Database,
    storage: Storage,
    *,
    upload_age: timedelta = UPLOAD_AGE,
    object_age: timedelta = OBJECT_AGE,
) -> Swept:
    """Any number of processes may do so at once, and at any time."""
    now = datetime.now(UTC)
    async with database.write() as connection:
        stale = await connection.execute(delete(uploads).where(uploads.c.updated_at < now - upload_age))
        # Sessions of complete files are kept as long, for whoever missed the last answer.
        unused = ~exists().where(files.c.blob == file_parts.c.blob) & ~exists().where(
            uploads.c.id == file_parts.c.blob
        )
        freed = (
            await connection.scalars(delete(file_parts).where(unused).returning(file_parts.c.object))
        ).all()
    await storage.delete(freed)
    stray = await _stray(database, storage, now - object_age)
    await storage.delete(stray)
    swept = Swept(stale.rowcount, len(freed) + len(stray))
    log.info("swept", extra={"fields": {"uploads": swept.uploads, "objects": swept.objects}})
    return swept


async def _stray(database: Database, storage: Storage, before: datetime) -> list[str]:
    """Objects that no row names, written before that time: by processes that were killed."""
    found = await storage.find(TEMPORARY)
    for paths in _batches(await storage.find(FOLDER)):
        async with database.read() as connection:
            query = select(file_parts.c.object).where(file_parts.c.object.in_(paths))
            named = set((await connection.scalars(query)).all())
        found += [path for path in paths if path not in named]
    stray = []
    for path in found:
        try:
            if await storage.modified(path) < before:
                stray.append(path)
        except Lost:  # another process was quicker
            continue
    return stray


def _batches(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(paths), BATCH):
        yield paths[start : start + BATCH]
