"""LanceDB: tables of vectors and of dataset rows, in a folder of STACK_HOME or below STACK_STORAGE_URL."""

from __future__ import annotations

import asyncio
import importlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from stack.errors import NotReady, StackError
from stack.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.db import AsyncConnection
    from lancedb.table import AsyncTable

OPEN_TABLES = 256  # handles that are kept; each holds some metadata, none the data
# Of all tables together. LanceDB's own limits are several GiB.
INDEX_CACHE_BYTES = 512 << 20
METADATA_CACHE_BYTES = 128 << 20


class Lance:
    """The process's connection, made when it is first used: importing lancedb takes 150 MiB.

    Reads see what any process has committed. Tables are named by us, never by callers.
    """

    def __init__(self, settings: Settings) -> None:
        self.uri = lance_uri(settings)
        self._opening = asyncio.Lock()
        self._connection: AsyncConnection | None = None
        self._tables: OrderedDict[str, AsyncTable] = OrderedDict()

    async def connection(self) -> AsyncConnection:
        async with self._opening:
            if self._connection is None:
                lancedb = await asyncio.to_thread(importlib.import_module, "lancedb")
                with_every_read = timedelta(0)
                caches = lancedb.Session(INDEX_CACHE_BYTES, METADATA_CACHE_BYTES)
                self._connection = await lancedb.connect_async(
                    self.uri, read_consistency_interval=with_every_read, session=caches
                )
            return self._connection

    async def create(self, name: str, schema: pa.Schema) -> AsyncTable:
        """A new, empty table; one of that name that is there is returned as it is."""
        try:
            return await self.table(name)
        except TableGone:
            connection = await self.connection()
        try:
            return await connection.create_table(name, schema=schema)
        except ValueError as error:
            if "already exists" not in str(error):
                raise
            return await self.table(name)  # another process was faster

    async def table(self, name: str) -> AsyncTable:
        """Raises TableGone when another process has dropped it."""
        if (found := self._tables.get(name)) is not None:
            self._tables.move_to_end(name)
            return found
        connection = await self.connection()
        try:
            table = await connection.open_table(name)
        except (ValueError, FileNotFoundError) as error:
            raise TableGone(name) from error
        self._tables[name] = table
        while len(self._tables) > OPEN_TABLES:
            self._tables.popitem(last=False)
        return table

    async def drop(self, name: str) -> None:
        """Free a table's disk; nothing happens when there is none."""
        self._tables.pop(name, None)
        connection = await self.connection()
        await connection.drop_table(name, ignore_missing=True)

    async def names(self) -> list[str]:
        """All tables. Where none was ever made, lancedb is not imported to find out."""
        if "://" not in self.uri and not await asyncio.to_thread(Path(self.uri).is_dir):
            return []
        connection, names, token = await self.connection(), list[str](), None
        while True:
            page = await connection.list_tables(page_token=token, limit=1000)
            names += page.tables
            token = page.page_token
            if not token:
                return names

    def close(self) -> None:
        self._tables.clear()
        if self._connection is not None:
            self._connection.close()  # type: ignore[no-untyped-call]  # lancedb leaves it untyped


@asynccontextmanager
async def open_lance(settings: Settings) -> AsyncGenerator[Lance]:
    lance = Lance(settings)
    try:
        yield lance
    finally:
        lance.close()


class TableGone(StackError):
    """A table that SQL still names. Told as a 500 if nobody catches it."""


@contextmanager
def lance_errors() -> Iterator[None]:
    """LanceDB's errors of the disk or the object store, told as such."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        text = str(error).lower()
        if "no space left" in text or "disk quota" in text:
            raise NotReady("the server's disk is full: free some space, then try again", None) from error
        raise


def lance_uri(settings: Settings) -> str:
    """Where LanceDB keeps its tables: a folder, or an object store's URL."""
    url = settings.storage_url
    if url is None:
        return str(settings.home / "lancedb")
    return f"{url.removeprefix('file://').rstrip('/')}/lancedb"
