"""Registering, reading and appending, from several processes, through kills and races."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pydantic_core import from_json

from stack.datasets import datasets as module
from stack.datasets import tables
from stack.datasets.convert import schema
from stack.datasets.datasets import Datasets
from stack.datasets.sources import sweep_folders, working_folders
from stack.errors import AlreadyRegistered, BadRequest, NotFound
from stack.schemas.datasets import RowsDataSource
from stack.settings import Settings
from tests.datasets.conftest import opened, qa, register

ROOT = Path(__file__).parents[2]
BIG = {
    "question": "q",
    "answer": "a",
    "z": 10**40,
    "a": [1, 1.0, -0.0, 5e-324, None, True, "\0", "é\U0001f600"],
}


def rows(count: int, first: int = 0) -> dict[str, object]:
    return {"type": "rows", "rows": qa(count, first)}


async def test_rows_come_back_as_they_went_in(datasets: Datasets) -> None:
    dataset = await register(datasets, {"type": "rows", "rows": [BIG, *qa(3)]}, metadata={"x": None})
    assert (dataset.provider_id, dataset.metadata) == ("lancedb", {"x": None})
    page = await datasets.page("d")
    assert [json.dumps(from_json(row)) for row in page.rows] == [json.dumps(row) for row in [BIG, *qa(3)]]
    assert (page.total, page.next_start) == (4, None)
    assert await datasets.read("d", 1, 2) == qa(2)
    assert (await datasets.page("d", 1, 2)).next_start == 3
    assert [row async for batch in datasets.batches("d", 3) for row in batch] == [BIG, *qa(3)]
    assert await datasets.count("d") == 4
    for start in (4, 5, 10**30):
        assert (await datasets.page("d", start)).rows == []
    assert (await datasets.page("d", 1, 0)).rows == []


async def test_the_same_again_is_fine_and_another_is_not(datasets: Datasets) -> None:
    first = await register(datasets, rows(2))
    assert await register(datasets, rows(2)) == first
    for fields in ({"metadata": {"a": 1}}, {"source": rows(3)}, {"purpose": "post-training/messages"}):
        with pytest.raises(AlreadyRegistered):
            await register(datasets, **({"source": rows(2)} | fields))  # type: ignore[arg-type]
    unnamed = [await register(datasets, rows(1), dataset_id=None) for _ in range(2)]
    assert unnamed[0].identifier != unnamed[1].identifier
    assert len(await datasets.registry.list()) == 3
    await datasets.delete("d")
    with pytest.raises(NotFound):
        await datasets.delete("d")
    assert await register(datasets, rows(3)) != first


async def test_of_two_registrations_at_once_one_is_kept(settings: Settings) -> None:
    async with opened(settings) as one, opened(settings) as other:
        same = await asyncio.gather(*(register(either, rows(2)) for either in (one, other)))
        assert same[0] == same[1]
        found = await asyncio.gather(
            *(register(either, rows(n + 1), dataset_id="e") for n, either in enumerate((one, other))),
            return_exceptions=True,
        )
        assert sorted(type(result).__name__ for result in found) == ["AlreadyRegistered", "Dataset"]
        assert len(await one._tables.names()) == 2


async def test_a_refused_row_leaves_nothing(datasets: Datasets, settings: Settings) -> None:
    with pytest.raises(BadRequest, match=r"row 2 .*column 'answer'"):
        await register(datasets, {"type": "rows", "rows": [*qa(2), {"question": "q"}]})
    assert await datasets.registry.list() == []
    assert await datasets._tables.names() == []
    assert list(working_folders(settings).iterdir()) == []


async def test_many_rows_are_listed_in_part(datasets: Datasets) -> None:
    dataset = await register(datasets, rows(5000))
    assert isinstance(dataset.source, RowsDataSource)
    assert 500 < len(dataset.source.rows) < 2000
    assert await register(datasets, rows(5000)) == dataset
    assert await datasets.count("d") == 5000


async def test_a_page_is_bounded_in_rows_and_bytes(
    datasets: Datasets, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(datasets, rows(12_000))
    page = await datasets.page("d")
    assert (len(page.rows), page.next_start) == (tables.PAGE_ROWS, tables.PAGE_ROWS)
    monkeypatch.setattr(tables, "PAGE_BYTES", sum(len(row) for row in page.rows[100:103]))
    assert len((await datasets.page("d", 100)).rows) == 3
    monkeypatch.setattr(tables, "PAGE_BYTES", 1)
    assert len((await datasets.page("d", 100, 5)).rows) == 1


async def test_appends(datasets: Datasets) -> None:
    await register(datasets, rows(0))
    assert (await datasets.page("d")).rows == []
    await datasets.append("d", qa(2))
    await datasets.append("d", [])
    with pytest.raises(BadRequest, match=r"row 1 .*column 'answer': is a text, not 1"):
        await datasets.append("d", [*qa(1), {"question": "q", "answer": 1}])
    await datasets.append("d", qa(2, 2))
    assert await datasets.read("d") == qa(4)
    for call in (datasets.append("no", qa(1)), datasets.append("no", []), datasets.page("no")):
        with pytest.raises(NotFound, match="dataset 'no'"):
            await call


async def test_reads_and_appends_after_another_process_deleted_it(settings: Settings) -> None:
    async with opened(settings) as one, opened(settings) as other:
        name = (await register(one, rows(2))).provider_resource_id
        assert await other.read("d") == qa(2)
        with pytest.raises(NotFound):  # deleted between looking it up and writing
            await asyncio.gather(_deleted_meanwhile(one, other))
        assert name not in await one._tables.names()
        with pytest.raises(NotFound):
            await other.read("d")


async def _deleted_meanwhile(one: Datasets, other: Datasets) -> None:
    append = other._tables.append

    async def late(name: str, texts: list[bytes]) -> None:
        await one.delete("d")
        await append(name, texts)

    other._tables.append = late  # type: ignore[method-assign]
    await other.append("d", qa(1))


async def test_compaction_keeps_the_order_and_pages_stay(
    datasets: Datasets, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(datasets, rows(100))
    for first in range(100, 170):
        await datasets.append("d", qa(1, first))
    assert await datasets.maintain() == 1
    assert await datasets.read("d") == qa(170)
    table = await datasets._tables._lance.table(await datasets.table("d"))
    stats: Any = await table.stats()
    assert stats["fragment_stats"]["num_fragments"] == 1
    assert await datasets.maintain() == 0  # old versions may still be read
    monkeypatch.setattr(tables, "KEEP_VERSIONS", tables.timedelta(0))
    assert await datasets.maintain() == 1
    assert len(await table.list_versions()) == 1  # type: ignore[no-untyped-call]
    assert await datasets.read("d") == qa(170)


async def test_compaction_keeps_the_order_of_a_table_of_full_fragments(
    datasets: Datasets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_FRAGMENTS", 1)
    rows_of_table = tables.FULL_ROWS + 1000
    texts = pc.cast(pa.array(range(rows_of_table)), pa.utf8())
    batch = pa.record_batch([texts, pc.cast(pc.utf8_length(texts), pa.int32())], schema=schema())
    with pa.OSFile(str(tmp_path / "t"), "wb") as file, pa.ipc.new_stream(file, schema()) as writer:
        writer.write_batch(batch)
    await datasets._tables.create("dataset-x", tmp_path / "t")
    for more in range(3):
        await datasets._tables.append("dataset-x", [b"%d" % (rows_of_table + more)])
    assert await datasets._tables.maintain("dataset-x")
    for start in (0, tables.FULL_ROWS - 2, rows_of_table - 2):
        page = await datasets._tables.page("dataset-x", start, 5)
        assert page.rows == [str(index) for index in range(start, start + 5)]


def test_only_small_fragments_at_the_end_are_merged() -> None:
    full = tables.FULL_ROWS
    assert tables.keeps_order([])
    assert tables.keeps_order([1, 2, 3])
    assert tables.keeps_order([full, full + 1, 5, 6])
    assert tables.keeps_order([5, full, 6, 7])
    assert not tables.keeps_order([5, 6, full])
    assert not tables.keeps_order([full, 5, 6, full, 7])


async def test_too_many_rows_in_one_append(datasets: Datasets) -> None:
    await register(datasets, rows(0))
    with pytest.raises(BadRequest, match="at most 524288 rows"):
        await datasets.append("d", qa(1) * (tables.MAX_APPEND_ROWS + 1))


WRITER = """
import asyncio, sys
from pathlib import Path
from stack.settings import Settings
from tests.datasets.conftest import opened, qa
async def main(home, name):
    async with opened(Settings(home=Path(home))) as datasets:
        for call in range(8):
            await datasets.append("d", [{"question": name, "answer": f"{call}.{i}"} for i in range(4)])
asyncio.run(main(*sys.argv[1:]))
"""


async def test_several_processes_append_while_another_compacts(
    datasets: Datasets, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_FRAGMENTS", 1)
    await register(datasets, rows(0))
    writers = [start(WRITER, settings, name) for name in ("x", "y")]
    compacted = 0
    while any(writer.poll() is None for writer in writers):
        compacted += await datasets.maintain()
        await asyncio.sleep(0.05)
    assert compacted > 0
    assert [writer.returncode for writer in writers] == [0, 0]
    found = await datasets.read("d")
    for name in ("x", "y"):
        answers = [row["answer"] for row in found if row["question"] == name]
        assert answers == [f"{call}.{i}" for call in range(8) for i in range(4)]
    for first in range(0, 64, 4):  # a call's rows stay together
        assert len({(row["question"], row["answer"].split(".")[0]) for row in found[first : first + 4]}) == 1


def start(code: str, settings: Settings, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", code, str(settings.home), *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})


async def test_another_process_reads_what_this_one_wrote_and_so_does_the_next_start(
    settings: Settings,
) -> None:
    async with opened(settings) as one, opened(settings) as other:
        await register(one, rows(2))
        assert await other.read("d") == qa(2)
        await other.append("d", qa(1, 2))
        assert await one.read("d") == qa(3)
    async with opened(settings) as again:
        assert await again.read("d") == qa(3)


KILLED = """
import asyncio, os, sys
from pathlib import Path
from stack.datasets.datasets import Datasets
from stack.datasets.tables import RowTables
from stack.settings import Settings
from tests.datasets.conftest import opened, register
async def main(home, when):
    create = RowTables.create
    async def killed(self, name, arrow):
        if when == "after":
            await create(self, name, arrow)
        os.kill(os.getpid(), 9)
    RowTables.create = killed
    async with opened(Settings(home=Path(home))) as datasets:
        await register(datasets, {"type": "rows", "rows": [{"question": "q", "answer": "a"}]})
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_killed_registration_leaves_nothing_that_is_seen_and_is_swept(
    datasets: Datasets, settings: Settings, when: str
) -> None:
    kept = await register(datasets, rows(1), dataset_id="kept")
    assert await asyncio.to_thread(start(KILLED, settings, when).wait) == -signal.SIGKILL
    assert await datasets.registry.list() == [kept]
    assert len(list(working_folders(settings).iterdir())) == 1
    assert len(await datasets._tables.names()) == (2 if when == "after" else 1)
    assert await datasets.sweep() == 0  # it may still be at work
    assert await datasets.sweep(older_than_s=-1) == (2 if when == "after" else 1)
    assert await datasets._tables.names() == [kept.provider_resource_id]
    assert list(working_folders(settings).iterdir()) == []
    assert await register(datasets, rows(1)) is not None
    assert await datasets.count("kept") == 1


def test_a_folder_in_use_is_not_swept(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    folder = tmp_path / "tmp/dataset-1"
    folder.mkdir(parents=True)
    os.utime(folder, (1, 1))
    (folder / "source").write_bytes(b"x")
    assert sweep_folders(settings, 60) == 0
    os.utime(folder / "source", (1, 1))
    os.utime(folder, (1, 1))
    assert sweep_folders(settings, 60) == 1


def test_names_of_tables_tell_what_and_when() -> None:
    name = tables.new_name("0123456789abcdef")
    assert tables.fingerprint_of(name) == "0123456789abcdef"
    assert 0 <= tables.age_s(name) < 5
    assert tables.age_s(f"dataset-x-{int(time.time()) - 100:08x}-y") > 99
    assert module.ORPHAN_AFTER_S == 3600
