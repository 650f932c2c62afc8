"""Rows in a dataset or a file, parts, attempts that break off: on real stores, with answers from here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic_core import to_json

from stack.batch.parts import (
    MAX_PART_ROWS,
    PARTS,
    Lines,
    Part,
    Results,
    Source,
    Stores,
    Table,
    UploadedLines,
    part_rows,
)
from stack.batch.work import AT_ONCE, Answer, Work, work
from stack.datasets.datasets import Datasets
from stack.datasets.tables import RowTables
from stack.errors import BadRequest, NotReady
from stack.files.blobs import Blobs
from stack.files.files import Files
from stack.files.uploads import Uploads
from stack.jobs.context import JobContext
from stack.schemas.datasets import RegisterDatasetRequest
from stack.settings import Settings
from stack.store.database import Database
from stack.store.jobs import Jobs
from stack.store.lance import open_lance
from stack.store.storage import Storage, open_storage

Row = dict[str, Any]


class Bench:
    def __init__(self, settings: Settings, database: Database, datasets: Datasets, stores: Stores) -> None:
        self.settings, self.database, self.datasets, self.stores = settings, database, datasets, stores
        self.storage = stores.storage
        self.jobs = Jobs(database, lease_s=0.0)

    async def table(self, rows: int) -> Table:
        source = {"type": "rows", "rows": [{"question": str(n), "answer": "a", "n": n} for n in range(rows)]}
        body = {"purpose": "eval/question-answer", "dataset_id": "rows", "source": source}
        await self.datasets.register(RegisterDatasetRequest.model_validate(body))
        return Table(await self.datasets.table("rows"), rows)

    async def lines(self, rows: int) -> Lines:
        await self.storage.write("in.jsonl", b"".join(to_json({"n": n}) + b"\n" for n in range(rows)))
        return Lines("in.jsonl")

    async def attempt(self, source: Source, answer: Answer) -> list[Row]:
        """Of the job `job`; returns what came of all rows."""
        if not await self.jobs.list(kind="batch"):
            await self.jobs.submit("batch", {}, "job")
        lease = await self.jobs.claim("job", "me")
        context = JobContext(self.settings, self.database, lease)
        done = await work(context, source, opening(answer))
        assert (context.shown["done"], context.shown["total"]) == (done.rows, done.rows)
        self.failed = done.failed
        return await self.results(done.parts)

    async def results(self, parts: int) -> list[Row]:
        return [row async for page in Results(self.storage, "job").read(parts) for row in page]


def opening(answer: Answer) -> Work:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Answer]:
        yield answer

    return opened


@pytest.fixture
async def bench(database: Database, storage: Storage, tmp_path: Any) -> AsyncIterator[Bench]:
    settings = Settings(home=tmp_path / "home")
    async with open_lance(settings) as lance:
        files = Files(database, Blobs(database, storage))
        datasets = Datasets(settings, database, lance, files)
        yield Bench(settings, database, datasets, Stores(storage, RowTables(lance), files))


@pytest.fixture
async def storage(tmp_path: Any) -> AsyncIterator[Storage]:
    async with open_storage(Settings(home=tmp_path / "home")) as storage:
        yield storage


@pytest.fixture
async def database(tmp_path: Any) -> AsyncIterator[Database]:
    from stack.store.database import open_database

    async with open_database(Settings(home=tmp_path / "home", database_url=None)) as database:
        yield database


async def double(row: Row) -> Row:
    return {"twice": 2 * row["n"]}


Make = Callable[[Bench, int], Awaitable[Source]]


@pytest.mark.parametrize("make", [Bench.table, Bench.lines])
@pytest.mark.parametrize("rows", [1, 3, 1100])
async def test_every_row_once_in_order(bench: Bench, make: Make, rows: int) -> None:
    seen: list[int] = []

    async def answer(row: Row) -> Row:
        seen.append(row["n"])
        return await double(row)

    found = await bench.attempt(await make(bench, rows), answer)
    assert found == [{"twice": 2 * n} for n in range(rows)]
    assert sorted(seen) == list(range(rows))


async def test_no_rows(bench: Bench) -> None:
    assert await bench.attempt(Table("none", 0), double) == []


async def test_a_row_that_fails_is_its_own_error(bench: Bench) -> None:
    async def answer(row: Row) -> Row:
        if row["n"] == 5:
            raise BadRequest("five is odd")
        return await double(row)

    found = await bench.attempt(await bench.lines(9), answer)
    assert found[5] == {"error": {"status": 400, "title": "Bad Request", "detail": "five is odd"}}
    assert found[6] == {"twice": 12}
    (job,) = await bench.jobs.list()
    assert job.progress == {}  # written by the keeper, which is not there


async def test_an_attempt_that_breaks_off_is_gone_on_with(bench: Bench) -> None:
    """What is finished is not asked again."""
    source, asked = await bench.lines(700), list[int]()
    broken = asyncio.Event()

    async def answer(row: Row) -> Row:
        asked.append(row["n"])
        await asyncio.sleep(0)
        if row["n"] == 400 and not broken.is_set():
            broken.set()
            raise RuntimeError("killed")
        return await double(row)

    with pytest.raises(RuntimeError, match="killed"):
        await bench.attempt(source, answer)
    assert 400 - 2 * AT_ONCE < len(asked) < 400 + 2 * AT_ONCE
    finished = await Results(bench.storage, "job").finished()
    assert len(finished) > 200
    asked.clear()
    assert await bench.attempt(source, answer) == [{"twice": 2 * n} for n in range(700)]
    assert len(asked) == 700 - len(finished) * part_rows(700)


async def test_errors_of_earlier_attempts_count(bench: Bench) -> None:
    source = await bench.lines(600)
    breaks = True

    async def answer(row: Row) -> Row:
        if row["n"] == 500 and breaks:
            raise RuntimeError("killed")
        if row["n"] % 100 == 3:
            raise BadRequest("three")
        return await double(row)

    with pytest.raises(RuntimeError, match="killed"):
        await bench.attempt(source, answer)
    breaks = False
    await bench.attempt(source, answer)
    assert bench.failed == 6


async def test_a_model_that_is_away_is_waited_for(bench: Bench) -> None:
    away = 3

    async def answer(row: Row) -> Row:
        nonlocal away
        if away:
            away -= 1
            raise NotReady("its replica is being replaced")
        return await double(row)

    assert await bench.attempt(await bench.lines(4), answer) == [{"twice": 2 * n} for n in range(4)]


async def test_rows_under_way_are_bounded(bench: Bench) -> None:
    under_way = most = 0

    async def answer(row: Row) -> Row:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1
        return {}

    await bench.attempt(await bench.lines(600), answer)
    assert AT_ONCE // 2 < most <= AT_ONCE


def test_part_sizes() -> None:
    assert [part_rows(rows) for rows in (0, 1, PARTS - 1, 2 * PARTS, 10**6)] == [1, 1, 1, 2, MAX_PART_ROWS]


async def test_lines_are_found_in_blocks(bench: Bench) -> None:
    source = await bench.lines(3000)
    parts = await source.parts(bench.stores)
    assert [(part.first, part.rows) for part in parts[:2]] == [(0, 5), (5, 5)]
    assert sum(part.rows for part in parts) == 3000
    assert parts[-1] == Part(599, 2995, 5, parts[-2].end, await bench.storage.size("in.jsonl"))


async def test_lines_that_are_no_rows_are_their_own_errors(bench: Bench) -> None:
    await bench.storage.write("in.jsonl", b'{"n": 1}\n\nno\n[1]\n{"n": 2, "custom_id": "x"}\n{"n": 3}')

    async def answer(row: Row) -> Row:
        if row["n"] == 2:
            raise BadRequest("two")
        return await double(row)

    found = await bench.attempt(Lines("in.jsonl"), answer)
    details = [row.get("error", {}).get("detail", "")[:16] for row in found]
    assert details == ["", "line 2 is not JS", "line 3 is not JS", "line 4 is no JSO", "two", ""]
    assert (found[0], found[4]["custom_id"], found[5]) == ({"twice": 2}, "x", {"twice": 6})


async def test_an_uploaded_file(bench: Bench) -> None:
    content = b"".join(to_json({"n": n}) + b"\n" for n in range(1200))
    uploads = Uploads(bench.database, Blobs(bench.database, bench.storage), bench.stores.files, 1 << 30)
    upload = await uploads.create("batches", "in.jsonl", "application/jsonl", len(content))

    async def blocks() -> AsyncIterator[bytes]:
        yield content

    await uploads.append(upload.id, blocks())
    found = await bench.attempt(UploadedLines("batches", "in.jsonl"), double)
    assert found == [{"twice": 2 * n} for n in range(1200)]
