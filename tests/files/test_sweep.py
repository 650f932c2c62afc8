from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from stack.files.sweep import Swept, sweep
from stack.files.uploads import NoUpload
from tests.files.conftest import Shelf, chunks

NOW = timedelta(0)


async def test_frees_abandoned_uploads_and_leaves_files(shelf: Shelf) -> None:
    await shelf.upload("kept", b"kept")
    upload = await shelf.uploads.create("b", "k", "text/plain", 10)
    await shelf.uploads.append(upload.id, chunks(b"abc"))
    assert await sweep(shelf.database, shelf.storage) == Swept(0, 0)
    assert await sweep(shelf.database, shelf.storage, upload_age=NOW) == Swept(2, 1)
    with pytest.raises(NoUpload):
        await shelf.uploads.get(upload.id)
    assert await shelf.contents("kept") == b"kept"
    assert len(await shelf.objects()) == 1


async def test_frees_objects_that_no_file_names(shelf: Shelf) -> None:
    await shelf.upload("kept", b"kept")
    for path in ("files/ab/abc-0-1", "tmp/half", "jobs/payload"):
        await shelf.storage.write(path, b"stray")
    assert await sweep(shelf.database, shelf.storage) == Swept(0, 0)
    assert await sweep(shelf.database, shelf.storage, object_age=NOW) == Swept(0, 2)
    assert "jobs/payload" in await shelf.objects()
    assert await shelf.contents("kept") == b"kept"


async def test_an_upload_that_is_under_way_is_not_abandoned(shelf: Shelf) -> None:
    upload = await shelf.uploads.create("b", "k", "text/plain", 6)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"abc"
        begun.set()
        await go_on.wait()
        yield b"def"

    task = asyncio.create_task(shelf.uploads.append(upload.id, slow()))
    await begun.wait()
    await sweep(
        shelf.database, shelf.storage, upload_age=timedelta(minutes=1), object_age=timedelta(minutes=1)
    )
    go_on.set()
    await task
    assert await shelf.contents("k") == b"abcdef"
