"""A job's rows in parts: where they are read, and where what came of them is kept.

A part's results are one file in the job's folder, a JSON line for each row, written at once. So what a killed
job has finished is what files there are; one that goes on leaves these parts out, and no row is there twice.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from stack.datasets.tables import RowTables
from stack.errors import BadRequest, StackError
from stack.files.files import Files
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


class Stores(NamedTuple):
    """Where rows are."""

    storage: Storage
    tables: RowTables
    files: Files


@dataclass(frozen=True, slots=True)
class Table:
    """The first rows of a dataset's table."""

    name: str
    rows: int

    async def parts(self, stores: Stores) -> list[Part]:
        size = part_rows(self.rows)
        firsts = range(0, self.rows, size)
        return [Part(n, first, min(size, self.rows - first)) for n, first in enumerate(firsts)]

    async def read(self, part: Part, stores: Stores) -> list[Row | StackError]:
        rows: list[Row | StackError] = []
        while len(rows) < part.rows:
            start, left = part.first + len(rows), part.rows - len(rows)
            page = await stores.tables.page(self.name, start, left)
            if not page.rows:
                raise StackError("the dataset is gone: it was deleted meanwhile")
            rows += [from_json(row) for row in page.rows]
        return rows


@dataclass(frozen=True, slots=True)
class Lines:
    """A JSON object a line, in the storage."""

    path: str

    async def parts(self, stores: Stores) -> list[Part]:
        return await _parts(stores.storage.blocks(self.path))

    async def read(self, part: Part, stores: Stores) -> list[Row | StackError]:
        return _rows(await stores.storage.read(self.path, part.start, part.end), part)


@dataclass(frozen=True, slots=True)
class UploadedLines:
    """A JSON object a line, in a file of the Files API."""

    bucket: str
    key: str

    async def parts(self, stores: Stores) -> list[Part]:
        return await _parts(stores.files.read(await stores.files.get(self.bucket, self.key)))

    async def read(self, part: Part, stores: Stores) -> list[Row | StackError]:
        file = await stores.files.get(self.bucket, self.key)
        blocks = [block async for block in stores.files.read(file, part.start, part.end)]
        return _rows(b"".join(blocks), part)


Source = Table | Lines | UploadedLines


def part_rows(rows: int) -> int:
    """How many rows a part of so many has."""
    return max(1, min(MAX_PART_ROWS, rows // PARTS))


async def _parts(blocks: AsyncIterator[bytes]) -> list[Part]:
    """Of a file of lines; the last one may lack its newline."""
    ends, position = array("Q"), 0
    async for block in blocks:
        offset = 0
        while (end := block.find(b"\n", offset)) >= 0:
            offset = end + 1
            ends.append(position + offset)
        position += len(block)
    if position > (ends[-1] if ends else 0):
        ends.append(position)
    size = part_rows(len(ends))
    parts, start = list[Part](), 0
    for first in range(0, len(ends), size):
        rows = min(size, len(ends) - first)
        parts.append(Part(len(parts), first, rows, start, ends[first + rows - 1]))
        start = parts[-1].end
    return parts


def _rows(text: bytes, part: Part) -> list[Row | StackError]:
    """A line that is no JSON object is its own error."""
    return [
        _row(line, number) for number, line in enumerate(text.removesuffix(b"\n").split(b"\n"), part.first)
    ]


def _row(line: bytes, number: int) -> Row | StackError:
    try:
        row = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        return BadRequest(f"line {number + 1} is not JSON: {error}")
    return row if isinstance(row, dict) else BadRequest(f"line {number + 1} is no JSON object")


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

    async def failed(self, parts: Iterable[int]) -> int:
        """How many rows of these parts have an error."""
        count = 0
        for number in parts:
            lines = (await self._storage.read(self._path(number))).splitlines()
            count += sum("error" in from_json(line) for line in lines)
        return count

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
