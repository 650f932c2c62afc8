from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from stack.errors import NotReady
from stack.settings import Settings
from stack.store import storage as module
from stack.store.storage import Lost, Storage, open_storage


@pytest.fixture(params=["folder", "objects"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    url = None if request.param == "folder" else f"memory://{uuid4().hex}"
    async with open_storage(Settings(home=tmp_path / "home", storage_url=url)) as opened:
        yield opened


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[tuple[Storage, Path]]:
    async with open_storage(Settings(home=tmp_path)) as opened:
        yield opened, tmp_path / "storage"


async def test_writes_replaces_reads_and_deletes(storage: Storage) -> None:
    await storage.write("a/b", b"old and long")
    await storage.write("a/b", b"new")
    await storage.write("a/c d#%", bytearray(b"other"))
    assert await storage.read("a/b") == b"new"
    assert await storage.size("a/b") == 3
    assert await storage.find("a") == ["a/b", "a/c d#%"]
    assert await storage.find("") == ["a/b", "a/c d#%"]
    await storage.delete(["a/b", "a/none"])
    assert await storage.find("a") == ["a/c d#%"]
    assert await storage.find("none") == []
    for lost in (storage.read, storage.size, storage.modified):
        with pytest.raises(Lost):
            await lost("a/b")


async def test_reads_ranges(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(100))
    await storage.write("x", data)
    monkeypatch.setattr(module, "BLOCK_BYTES", 7)
    for start in range(0, 100, 9):
        for end in (None, start, start + 1, start + 20, 100):
            assert await storage.read("x", start, end) == data[start:end]
            blocks = [block async for block in storage.blocks("x", start, end)]
            assert b"".join(blocks) == data[start:end]
            assert all(0 < len(block) <= 7 for block in blocks)


async def test_tells_when_an_object_was_written(storage: Storage) -> None:
    await storage.write("x", b"")
    assert abs(datetime.now(UTC) - await storage.modified("x")) < timedelta(minutes=1)


async def test_readers_see_one_version_or_the_other(storage: Storage) -> None:
    versions = [bytes([number]) * 300_000 for number in range(10)]
    await storage.write("x", versions[0])

    async def write() -> None:
        for version in versions:
            await storage.write("x", version)

    writing = asyncio.create_task(write())
    while not writing.done():
        assert await storage.read("x") in versions
    await writing


async def test_many_writers(storage: Storage) -> None:
    await asyncio.gather(*(storage.write(f"n/{number:03}", str(number).encode()) for number in range(100)))
    assert len(await storage.find("n")) == 100


async def test_a_full_disk_is_told_and_nothing_is_left(
    folder: tuple[Storage, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, path = folder

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(NotReady, match="storage is full") as caught:
            await storage.write("a", b"x")
    assert str(path) not in str(caught.value)
    assert [found for found in path.rglob("*") if found.is_file()] == []
    await storage.write("a", b"x")


async def test_a_storage_that_is_away_is_told_without_its_place(folder: tuple[Storage, Path]) -> None:
    storage, path = folder
    path.rmdir()
    path.write_text("a file where the folder was")
    with pytest.raises(NotReady, match="does not answer") as caught:
        await storage.write("a", b"x")
    assert str(path) not in str(caught.value)


async def test_only_its_owner_reads_the_folder(folder: tuple[Storage, Path]) -> None:
    assert folder[1].stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("url", "told"), [("nonsense://x", "nonsense://"), ("/folder", "is not a URL"), ("s3://bucket", "s3fs")]
)
async def test_says_at_the_start_what_is_wrong_with_the_setting(tmp_path: Path, url: str, told: str) -> None:
    if url.startswith("s3:"):
        try:
            import s3fs  # type: ignore[import-not-found]  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("s3fs is installed")
    with pytest.raises(ValueError, match=told):
        async with open_storage(Settings(home=tmp_path, storage_url=url)):
            pass
