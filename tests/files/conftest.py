"""Files on SQLite with a folder, on SQLite with an object store, and on Postgres where a server is there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from stack.files.blobs import Blobs
from stack.files.files import Files, StoredFile
from stack.files.uploads import Upload, Uploads
from stack.settings import Settings
from stack.store.database import Database, open_database
from stack.store.storage import Storage, open_storage
from tests.store.conftest import empty_postgres_database, postgres_url

__all__ = ["postgres_url"]

MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Shelf:
    """What a process opens to keep files."""

    settings: Settings
    database: Database
    storage: Storage
    files: Files
    uploads: Uploads

    async def upload(self, key: str, data: bytes, bucket: str = "b", mime_type: str = "text/plain") -> Upload:
        upload = await self.uploads.create(bucket, key, mime_type, len(data))
        return (await self.uploads.append(upload.id, chunks(data)))[0]

    async def contents(self, key: str, bucket: str = "b") -> bytes:
        return await read(self.files, await self.files.get(bucket, key))

    async def objects(self) -> list[str]:
        return await self.storage.find("")


async def read(files: Files, file: StoredFile, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([block async for block in files.read(file, start, end)])


async def chunks(data: bytes, size: int = 1 << 16) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@asynccontextmanager
async def open_shelf(settings: Settings) -> AsyncIterator[Shelf]:
    async with open_database(settings) as database, open_storage(settings) as storage:
        blobs = Blobs(database, storage)
        files = Files(database, blobs)
        yield Shelf(settings, database, storage, files, Uploads(database, blobs, files, MAX_BYTES))


@pytest.fixture(params=["sqlite-folder", "sqlite-objects", "postgres-folder"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    database, storage = request.param.split("-")
    return Settings(
        home=tmp_path / "home",
        database_url=empty_postgres_database(request.getfixturevalue("postgres_url"))
        if database == "postgres"
        else None,
        # In memory, without rename and append: as an object store is.
        storage_url=f"memory://{uuid4().hex}/stack" if storage == "objects" else None,
        file_root=tmp_path / "root",
    )


@pytest.fixture
async def shelf(settings: Settings) -> AsyncIterator[Shelf]:
    async with open_shelf(settings) as opened:
        yield opened
