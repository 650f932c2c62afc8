"""A job's rows in parts: where they are read, and where what came of them is kept.

A part's results are one file in the job's folder, a JSON line for each row, written at once. So what a killed
job has finished is what files there are; one that goes on leaves these parts out, and no row is there twice.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json

from stack.datasets.tables import RowTables
from stack.errors import StackError
from stack.jobs.logs import files_of
from stack.store.storage import Storage

MAX_PART_ROWS = 256
PARTS = 512
"""About so many has a job with fewer rows than fill them: a kill costs what was under way, little more."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows from `first` on; `start` and `end` are bytes of a file of lines, 0 for a table."""

    number: int
    first: int
    rows: int
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """The first rows of a dataset's table."""

    name: str
    rows: int

    async def parts(self, storage: Storage) -> list[Part]:
        size = part_rows(self.rows)
        firsts = range(0, self.rows, size)
        return [Part(n, first, min(size, self.rows - first)) for n, first in enumerate(firsts)]

    async def read(self, part: Part, storage: Storage, tables: RowTables) -> list[Row]:
        rows: list[Row] = []
        while len(rows) < part.rows:
            page = await tables.page(self.name, part.first + len(rows), part.rows - len(rows))
            if not page.rows:
                raise StackError("the dataset is gone: it was deleted meanwhile")
            rows += [from_json(row) for row in page.rows]
        return rows


@dataclass(frozen=True, slots=True)
class Lines:
    """Rows of a file in the storage, one JSON object a line."""

    path: str
    rows: int

    async def parts(self, storage: Storage) -> list[Part]:
        size, parts = part_rows(self.rows), list[Part]()
        first = row = start = end = 0
        async for end in _line_ends(storage, self.path):
            row += 1
            if row - first == size:
                parts.append(Part(len(parts), first, size, start, end))
                first, start = row, end
        if row > first:
            parts.append(Part(len(parts), first, row - first, start, end))
        return parts

    async def read(self, part: Part, storage: Storage, tables: RowTables) -> list[Row]:
        text = await storage.read(self.path, part.start, part.end)
        return [from_json(line) for line in text.splitlines()]


Source = Table | Lines


def part_rows(rows: int) -> int:
    """How many rows a part of so many has."""
    return max(1, min(MAX_PART_ROWS, rows // PARTS))


async def _line_ends(storage: Storage, path: str) -> AsyncGenerator[int]:
    """Where each line ends, after its newline."""
    position = 0
    async for block in storage.blocks(path):
        offset = 0
        while (end := block.find(b"\n", offset)) >= 0:
            offset = end + 1
            yield position + offset
        position += len(block)


class Results:
    """What came of a job's parts, in its folder in the storage."""

    def __init__(self, storage: Storage, job_id: str) -> None:
        self._storage, self.folder = storage, f"{files_of(job_id)}/results"

    async def write(self, part: Part, results: Sequence[Mapping[str, Any]]) -> None:
        lines = b"".join(to_json(result, inf_nan_mode="null") + b"\n" for result in results)
        await self._storage.write(self._path(part.number), lines)

    async def finished(self) -> set[int]:
        """The numbers of the parts that need no more work."""
        paths = await self._storage.find(self.folder)
        return {int(path.rpartition("/")[2].partition(".")[0]) for path in paths}

    async def read(self, parts: int) -> AsyncGenerator[list[Row]]:
        """What came of all rows, in their order, a part at a time."""
        async for lines in self.lines(parts):
            yield [from_json(line) for line in lines.splitlines()]

    async def lines(self, parts: int) -> AsyncGenerator[bytes]:
        """As `read`, each part's lines as they are."""
        for number in range(parts):
            yield await self._storage.read(self._path(number))

    def _path(self, number: int) -> str:
        return f"{self.folder}/{number:08}.jsonl"
