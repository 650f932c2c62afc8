"""Datasets: registered once, then read by index and appended to, from any process of the stack."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from pydantic_core import from_json, to_json

from stack.datasets.rows import encode
from stack.datasets.sources import converted, sweep_folders
from stack.datasets.tables import MAX_APPEND_ROWS, Page, RowTables, age_s, fingerprint_of, new_name
from stack.errors import AlreadyRegistered, BadRequest, NotFound, Overloaded
from stack.files.files import Files
from stack.schemas.datasets import Dataset, DataSource, RegisterDatasetRequest, RowsDataSource
from stack.settings import Settings
from stack.store.database import Database
from stack.store.lance import Lance, TableGone
from stack.store.registry import Registry, checked_id

log = logging.getLogger(__name__)

PROVIDER = "lancedb"
SHOWN_BYTES = 1 << 16
"""Of a `rows` source, the registry keeps about so much: each request of a dataset reads its entry."""

CONVERSIONS = 2
"""Files that one process converts, or has the hub send, at a time; more registrations wait."""

ORPHAN_AFTER_S = 3600.0


class Datasets:
    """The registry row is written last and deleted first: what has one has all its rows."""

    def __init__(self, settings: Settings, database: Database, lance: Lance, files: Files) -> None:
        self.registry: Registry[Dataset] = Registry(database, Dataset)
        self._settings, self._database, self._files = settings, database, files
        self._tables = RowTables(lance)
        self._conversions = asyncio.Semaphore(CONVERSIONS)

    async def register(self, request: RegisterDatasetRequest) -> Dataset:
        """Read and check all rows, then make them visible at once. The same again is fine, and reads nothing.

        Raises AlreadyRegistered for other contents; BadRequest for a source that cannot be read and for rows
        that the purpose does not have.
        """
        identifier = checked_id("dataset", request.dataset_id or f"dataset-{uuid4().hex[:12]}")
        fingerprint = await asyncio.to_thread(_fingerprint, request)
        if (found := await self._find(identifier)) is not None:
            return _same(found, fingerprint)
        async with converted(
            request.source, request.purpose, self._files, self._settings, self._conversions
        ) as arrow:
            name = new_name(fingerprint)
            try:
                await self._tables.create(name, arrow)
            except BaseException:
                await asyncio.shield(self._tables.drop(name))
                raise
        dataset = Dataset(
            identifier=identifier, provider_resource_id=name, provider_id=PROVIDER, purpose=request.purpose,
            source=await asyncio.to_thread(_shown, request.source), metadata=request.metadata or {},
        )  # fmt: skip
        # Cancelled here, nobody knows whether the row was written: the sweep will.
        try:
            return await self.registry.register(dataset)
        except AlreadyRegistered:  # another was quicker
            await self._tables.drop(name)
            return _same(await self.registry.get(identifier), fingerprint)

    async def delete(self, identifier: str) -> None:
        """Raises NotFound. Frees the rows' disk."""
        dataset = await self.registry.get(identifier)
        await self.registry.delete(identifier)
        await self._tables.drop(dataset.provider_resource_id)

    async def append(self, identifier: str, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows, all or none, in their order. Raises NotFound; BadRequest names the first bad row."""
        dataset = await self.registry.get(identifier)
        if not rows:
            return
        if len(rows) > MAX_APPEND_ROWS:
            raise BadRequest(f"one call appends at most {MAX_APPEND_ROWS} rows, not {len(rows)}")
        try:
            texts = await asyncio.to_thread(lambda: list(encode(rows, dataset.purpose)))
        except ValueError as error:
            raise BadRequest(str(error)) from error
        name = dataset.provider_resource_id
        async with self._present(identifier), self._writing(name):
            await self._tables.append(name, texts)
        found = await self._find(identifier)
        if found is None or found.provider_resource_id != name:
            await self._tables.drop(name)  # deleted meanwhile: the commit brought its folder back
            raise NotFound("dataset", identifier)

    async def page(self, identifier: str, start: int = 0, limit: int | None = None) -> Page:
        """Rows as JSON texts; the page may hold fewer than `limit`, see tables.PAGE_ROWS. Raises NotFound."""
        name = await self.table(identifier)
        async with self._present(identifier):
            return await self._tables.page(name, start, limit)

    async def read(self, identifier: str, start: int = 0, limit: int | None = None) -> list[dict[str, Any]]:
        """As `page`, the rows parsed."""
        page = await self.page(identifier, start, limit)
        return [from_json(row) for row in page.rows]

    async def batches(self, identifier: str, size: int = 1000) -> AsyncIterator[list[dict[str, Any]]]:
        """All rows, in order. Rows that are appended meanwhile come too."""
        start = 0
        while rows := await self.read(identifier, start, size):
            yield rows
            start += len(rows)

    async def count(self, identifier: str) -> int:
        name = await self.table(identifier)
        async with self._present(identifier):
            return await self._tables.count(name)

    async def table(self, identifier: str) -> str:
        """Its table's name below `Lance.uri`, for others to stream from. The column `row` is JSON text."""
        return (await self.registry.get(identifier)).provider_resource_id

    async def maintain(self) -> int:
        """Compact what many appends have scattered; returns how many tables. For a background loop."""
        done = 0
        for dataset in await self.registry.list():
            name = dataset.provider_resource_id
            try:
                async with self._writing(name):
                    done += await self._tables.maintain(name)
            # Deleted or written to meanwhile, or damaged: the others are none the worse.
            except (TableGone, Overloaded, RuntimeError, OSError, ValueError) as error:
                log.warning("dataset %s was not compacted: %s", dataset.identifier, error)
        return done

    async def sweep(self, older_than_s: float = ORPHAN_AFTER_S) -> int:
        """Free what killed registrations and deletions left; returns how many. For a background loop."""
        names = [name for name in await self._tables.names() if age_s(name) > older_than_s]
        # Asked second: a table that has a row by now is nobody's orphan.
        known = {dataset.provider_resource_id for dataset in await self.registry.list()} if names else set()
        orphans = [name for name in names if name not in known]
        for name in orphans:
            await self._tables.drop(name)
        return len(orphans) + await asyncio.to_thread(sweep_folders, self._settings, older_than_s)

    @asynccontextmanager
    async def _writing(self, name: str) -> AsyncGenerator[None]:
        """One writer at a time: a compaction that merges with an append would put the new rows first.

        Lance alone would merge appends, too, but no faster.
        """
        async with self._database.lock(f"dataset-{name[-2:]}"):  # 256 names, since each may be a file
            yield

    @asynccontextmanager
    async def _present(self, identifier: str) -> AsyncGenerator[None]:
        """NotFound for what Lance raises when the dataset was deleted by another process meanwhile."""
        try:
            yield
        except (TableGone, RuntimeError):
            await self.registry.get(identifier)
            raise

    async def _find(self, identifier: str) -> Dataset | None:
        try:
            return await self.registry.get(identifier)
        except NotFound:
            return None


def _same(found: Dataset, fingerprint: str) -> Dataset:
    if fingerprint_of(found.provider_resource_id) != fingerprint:
        raise AlreadyRegistered("dataset", found.identifier)
    return found


def _fingerprint(request: RegisterDatasetRequest) -> str:
    """Of what is registered: equal JSON has an equal one, whatever the order of its keys."""
    said = [request.purpose, request.source.model_dump(), request.metadata or {}]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _shown(source: DataSource) -> DataSource:
    """The source as it is listed: of many rows, the first."""
    if not isinstance(source, RowsDataSource):
        return source
    size = 0
    for number, row in enumerate(source.rows):
        size += len(to_json(row))
        if size > SHOWN_BYTES:
            return RowsDataSource(rows=source.rows[: max(1, number)])
    return source
