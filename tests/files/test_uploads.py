from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stack.errors import BadRequest
from stack.files import uploads
from stack.files.blobs import PART_BYTES
from stack.files.files import NoFile
from stack.files.uploads import NoUpload
from tests.files.conftest import MAX_BYTES, Shelf, chunks, open_shelf

ROOT = Path(__file__).parents[2]
DATA = random.Random(0).randbytes(2 * PART_BYTES + 1000)


async def test_the_file_exists_when_its_size_is_reached(shelf: Shelf) -> None:
    upload = await shelf.uploads.create("b", "k", "text/plain", 10)
    assert (upload.offset, upload.size) == (0, 10)
    for number, part in enumerate((b"abc", b"", b"defghi"), 1):
        now, file = await shelf.uploads.append(upload.id, chunks(part))
        assert file is None
        assert now.offset == [3, 3, 9][number - 1]
        assert await shelf.uploads.get(upload.id) == now
        with pytest.raises(NoFile):
            await shelf.files.get("b", "k")
    now, file = await shelf.uploads.append(upload.id, chunks(b"j"))
    assert file == await shelf.files.get("b", "k")
    assert await shelf.contents("k") == b"abcdefghij"
    # Whoever missed that answer asks for the offset, or sends nothing once more.
    assert await shelf.uploads.get(upload.id) == now
    assert await shelf.uploads.append(upload.id, chunks(b"")) == (now, file)
    with pytest.raises(BadRequest, match="at most 0 more"):
        await shelf.uploads.append(upload.id, chunks(b"x"))


async def test_a_file_of_no_bytes_exists_at_once(shelf: Shelf) -> None:
    upload = await shelf.uploads.create("b", "empty", "text/plain", 0)
    assert await shelf.contents("empty") == b""
    _, file = await shelf.uploads.append(upload.id, chunks(b""))
    assert file == await shelf.files.get("b", "empty")
    with pytest.raises(BadRequest):
        await shelf.uploads.append(upload.id, chunks(b"x"))


async def test_a_large_file_is_stored_in_blocks(shelf: Shelf) -> None:
    await shelf.upload("k", DATA)
    assert await shelf.contents("k") == DATA
    assert len(await shelf.objects()) == 3


@pytest.mark.parametrize("told", [True, False])
async def test_more_than_was_declared_is_refused(shelf: Shelf, told: bool) -> None:
    upload = await shelf.uploads.create("b", "k", "text/plain", 10)
    await shelf.uploads.append(upload.id, chunks(b"abc"))
    with pytest.raises(BadRequest, match="declared with 10 bytes, of which 3 are stored: at most 7 more"):
        await shelf.uploads.append(upload.id, chunks(b"x" * 8), length=8 if told else None)
    assert (await shelf.uploads.get(upload.id)).offset == 3
    await shelf.uploads.append(upload.id, chunks(b"defghij"))
    assert await shelf.contents("k") == b"abcdefghij"


async def test_the_byte_after_the_last_block_keeps_the_file_from_appearing(shelf: Shelf) -> None:
    upload = await shelf.uploads.create("b", "k", "text/plain", PART_BYTES)
    with pytest.raises(BadRequest):
        await shelf.uploads.append(upload.id, chunks(DATA[: PART_BYTES + 1], PART_BYTES))
    assert (await shelf.uploads.get(upload.id)).offset == 0
    assert await shelf.files.in_bucket("b") == []


async def test_limits_what_may_be_declared(shelf: Shelf) -> None:
    with pytest.raises(BadRequest, match="STACK_MAX_FILE_GB"):
        await shelf.uploads.create("b", "k", "text/plain", MAX_BYTES + 1)


async def test_an_unknown_session_is_not_found(shelf: Shelf) -> None:
    with pytest.raises(NoUpload):
        await shelf.uploads.get("none")
    with pytest.raises(NoUpload):
        await shelf.uploads.append("none", chunks(b""))


async def test_a_part_for_another_offset_is_refused(shelf: Shelf) -> None:
    upload = await shelf.uploads.create("b", "k", "text/plain", 6)
    await shelf.uploads.append(upload.id, chunks(b"abc"), offset=0)
    with pytest.raises(BadRequest, match="at offset 3, not at 0"):
        await shelf.uploads.append(upload.id, chunks(b"abc"), offset=0)
    await shelf.uploads.append(upload.id, chunks(b"def"), offset=3)
    assert await shelf.contents("k") == b"abcdef"


async def test_a_thousand_small_parts_are_few_objects(shelf: Shelf) -> None:
    data = random.Random(1).randbytes(1000)
    upload = await shelf.uploads.create("b", "k", "text/plain", len(data))
    for start in range(0, len(data), 10):
        await shelf.uploads.append(upload.id, chunks(data[start : start + 10]))
    assert len(await shelf.objects()) <= 7  # of 100 parts: a bit of 100 each
    assert await shelf.contents("k") == data


async def _breaks(data: bytes) -> AsyncIterator[bytes]:
    async for chunk in chunks(data):
        yield chunk
    raise ConnectionError


async def test_stored_blocks_outlive_what_broke(shelf: Shelf) -> None:
    upload = await shelf.uploads.create("b", "k", "text/plain", len(DATA))
    with pytest.raises(ConnectionError):
        await shelf.uploads.append(upload.id, _breaks(DATA[: PART_BYTES + 1000]))
    async with open_shelf(shelf.settings) as other:  # a restart, or another replica
        now = await other.uploads.get(upload.id)
        assert now.offset == PART_BYTES
        await other.uploads.append(upload.id, chunks(DATA[now.offset :]), offset=now.offset)
        assert await other.contents("k") == DATA


async def test_a_cancelled_request_lets_the_next_one_go_on(shelf: Shelf) -> None:
    upload = await shelf.uploads.create("b", "k", "text/plain", len(DATA))
    reached = asyncio.Event()

    async def stands_still() -> AsyncIterator[bytes]:
        yield DATA[:PART_BYTES]
        reached.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(shelf.uploads.append(upload.id, stands_still()))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await shelf.uploads.append(upload.id, chunks(DATA[PART_BYTES:]), offset=PART_BYTES)
    assert await shelf.contents("k") == DATA


async def test_one_request_at_a_time_adds_to_a_session(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "BEAT_S", 0.1)
    upload = await shelf.uploads.create("b", "k", "text/plain", len(DATA))
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield DATA[:PART_BYTES]
        begun.set()
        await go_on.wait()
        yield DATA[PART_BYTES:]

    first = asyncio.create_task(shelf.uploads.append(upload.id, slow()))
    await begun.wait()
    async with open_shelf(shelf.settings) as other:
        with pytest.raises(BadRequest, match="another request is adding"):
            await other.uploads.append(upload.id, chunks(b"x" * 100))
    go_on.set()
    await first
    assert await shelf.contents("k") == DATA


async def test_ten_at_once_leave_what_one_of_them_sent(shelf: Shelf) -> None:
    upload = await shelf.uploads.create("b", "k", "text/plain", PART_BYTES + 10)
    sent = [bytes([number]) * (PART_BYTES + 10) for number in range(10)]
    answers = await asyncio.gather(
        *(shelf.uploads.append(upload.id, chunks(data)) for data in sent), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, BadRequest)]
    assert len(refused) == 9, answers
    assert await shelf.contents("k") in sent
    assert len(await shelf.objects()) == 2


async def test_one_that_stood_still_does_not_write_after_another_took_over(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "BEAT_S", 100.0)  # as of a process that is stopped
    monkeypatch.setattr(uploads, "DEAD_S", 0.3)
    upload = await shelf.uploads.create("b", "k", "text/plain", 6)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def late() -> AsyncIterator[bytes]:
        begun.set()
        await go_on.wait()
        yield b"xxx"

    first = asyncio.create_task(shelf.uploads.append(upload.id, late()))
    await begun.wait()
    await shelf.uploads.append(upload.id, chunks(b"abc"))
    go_on.set()
    with pytest.raises(BadRequest, match="took the upload over"):
        await first
    await shelf.uploads.append(upload.id, chunks(b"def"))
    assert await shelf.contents("k") == b"abcdef"
    assert len(await shelf.objects()) == 1


KILLED = """
import asyncio, sys
from pathlib import Path
from stack.settings import Settings
from tests.files.conftest import open_shelf
from tests.files.test_uploads import DATA, PART_BYTES

async def endless():
    yield DATA[: PART_BYTES + 1000]
    print("stored", flush=True)
    await asyncio.Event().wait()

async def main(home, upload_id):
    async with open_shelf(Settings(home=Path(home))) as shelf:
        await shelf.uploads.append(upload_id, endless())

asyncio.run(main(*sys.argv[1:]))
"""


async def test_goes_on_after_kill_9(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stack.settings import Settings

    monkeypatch.setattr(uploads, "DEAD_S", 1.5)
    async with open_shelf(Settings(home=tmp_path)) as shelf:
        upload = await shelf.uploads.create("b", "k", "text/plain", len(DATA))
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", KILLED, str(tmp_path), upload.id,
            cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert child.stdout is not None
        assert await child.stdout.readline() == b"stored\n"
        child.send_signal(signal.SIGKILL)
        await child.wait()
        offset = (await shelf.uploads.get(upload.id)).offset
        assert offset == PART_BYTES
        await shelf.uploads.append(upload.id, chunks(DATA[offset:]), offset=offset)
        assert await shelf.contents("k") == DATA
