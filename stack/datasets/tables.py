"""The LanceDB tables that hold rows as JSON texts, in the order in which they came.

A page costs the same wherever it starts: Lance knows how many rows each fragment has, and reads from the
middle of one. Nothing is ever deleted from a table, so an index names the same row for ever.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from stack.datasets.convert import batches, schema
from stack.store.lance import Lance, lance_errors

if TYPE_CHECKING:
    from lancedb.table import AsyncTable

T = TypeVar("T")

log = logging.getLogger(__name__)

PREFIX = "dataset-"
PAGE_ROWS, PAGE_BYTES = 10_000, 16 << 20
"""What one page holds at most; a row is smaller, so it always holds one."""

FULL_ROWS = 1 << 20  # LanceDB leaves a fragment of so many alone
MAX_APPEND_ROWS = FULL_ROWS // 2
"""In one append: with more, a full fragment would follow small ones, see keeps_order."""

MAX_FRAGMENTS = 64  # reading a page takes about 10 µs for each
KEEP_VERSIONS = timedelta(minutes=10)  # longer than any read of one page


@dataclass(frozen=True, slots=True)
class Page:
    rows: list[str]  # JSON texts
    start: int
    total: int  # rows of the whole dataset

    @property
    def next_start(self) -> int | None:
        """None: these are the last."""
        end = self.start + len(self.rows)
        return end if end < self.total else None


def new_name(fingerprint: str) -> str:
    """A table's name: what was registered, when (for the sweep), and something unique."""
    return f"{PREFIX}{fingerprint}-{int(time.time()):08x}-{uuid4().hex[:8]}"


def fingerprint_of(name: str) -> str:
    return name.removeprefix(PREFIX).partition("-")[0]


def age_s(name: str) -> float:
    return time.time() - int(name.split("-")[2], 16)


class RowTables:
    """Methods on a table raise TableGone, or RuntimeError, when another process has dropped it."""

    def __init__(self, lance: Lance) -> None:
        self._lance = lance

    async def create(self, name: str, arrow: Path) -> None:
        """A table with the rows of an Arrow stream file. Lance reads it in threads, a batch at a time."""
        import pyarrow as pa

        connection = await self._lance.connection()
        with lance_errors(), pa.OSFile(str(arrow)) as file, pa.ipc.open_stream(file) as reader:
            await connection.create_table(name, reader)

    async def append(self, name: str, texts: list[bytes]) -> None:
        """Add rows in one commit. Not while the table is compacted: that would change their order."""
        import pyarrow as pa

        table = await self._lance.table(name)
        with lance_errors():
            await table.add(pa.Table.from_batches(batches(texts), schema()))

    async def count(self, name: str) -> int:
        return await (await self._lance.table(name)).count_rows()

    async def page(self, name: str, start: int, limit: int | None) -> Page:
        """Rows from `start`, at most `limit`, PAGE_ROWS and PAGE_BYTES."""
        table = await self._lance.table(name)
        total = await table.count_rows()
        rows = min(PAGE_ROWS, max(0, total - start), PAGE_ROWS if limit is None else limit)
        if rows == 0:
            return Page([], min(start, total), total)
        sizes: list[int] = await _again(lambda: _column(table, "size", start, rows))
        size = fits = 0
        while fits < rows and (fits == 0 or size + sizes[fits] <= PAGE_BYTES):
            size, fits = size + sizes[fits], fits + 1
        return Page(await _again(lambda: _column(table, "row", start, fits)), start, total)

    async def maintain(self, name: str) -> bool:
        """Merge small fragments and drop old versions, if it is worth it; the order of rows stays.

        Not while another does so: the caller holds a lock.
        """
        table = await self._lance.table(name)
        stats: Any = await table.stats()
        fragments = stats["fragment_stats"]["num_fragments"]
        if fragments <= MAX_FRAGMENTS and not await _idle_with_versions(table):
            return False
        if not keeps_order(await _fragment_rows(table)):
            log.error("table %s is not compacted: its rows would change places", name)
            return False
        with lance_errors():
            await table.optimize(cleanup_older_than=KEEP_VERSIONS)
        return True

    async def drop(self, name: str) -> None:
        await self._lance.drop(name)

    async def names(self) -> list[str]:
        return [name for name in await self._lance.names() if name.startswith(PREFIX)]


def keeps_order(fragment_rows: Sequence[int]) -> bool:
    """Whether compaction leaves the rows where they are.

    Lance orders fragments by their numbers, and merged ones get new numbers. So what is merged, small
    neighbours, must be the last.
    """
    small = [rows < FULL_ROWS for rows in fragment_rows]
    while small and small[-1]:
        small.pop()
    return not any(one and next_one for one, next_one in pairwise(small))


async def _fragment_rows(table: AsyncTable) -> list[int]:
    """The rows of each fragment, in order: a row's number begins with its fragment's."""
    import numpy as np

    rows: dict[int, int] = {}
    async for batch in await table.query().select(["size"]).with_row_id().to_batches():
        numbers = batch["_rowid"].to_numpy() >> 32
        for fragment, count in zip(*np.unique(numbers, return_counts=True), strict=True):
            rows[int(fragment)] = rows.get(int(fragment), 0) + int(count)
    return list(rows.values())


async def _column(table: AsyncTable, column: str, start: int, rows: int) -> list[T]:
    found = await table.query().select([column]).offset(start).limit(rows).to_arrow()
    values: list[T] = found[column].to_pylist()
    return values


async def _again(read: Callable[[], Awaitable[list[T]]]) -> list[T]:
    """Read once more when maintenance took the files of the version that was being read."""
    try:
        return await read()
    except RuntimeError as error:
        if "not found" not in str(error).lower():
            raise
        return await read()


async def _idle_with_versions(table: AsyncTable) -> bool:
    """Whether old versions wait to be dropped and nobody has written for a while."""
    versions = await table.list_versions()  # type: ignore[no-untyped-call]  # lancedb leaves it untyped
    newest = max(version["timestamp"] for version in versions)
    newest = newest if newest.tzinfo else newest.astimezone(UTC)
    return len(versions) > 1 and datetime.now(UTC) - newest > KEEP_VERSIONS
