"""A dataset's source -> an Arrow file of checked rows in a working folder, which is gone afterwards."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

from stack.bounded import BoundedChild, Exceeded, Limits, Refused
from stack.datasets import convert, hub
from stack.datasets.formats import Input, detect
from stack.datasets.rows import encode
from stack.errors import BadRequest
from stack.files.files import Files
from stack.files.uris import open_uri
from stack.schemas.datasets import DatasetPurpose, DataSource, RowsDataSource
from stack.settings import Settings

DOWNLOAD_TIMEOUT_S = 3600.0
LIMITS = Limits(cpu_s=1800, wall_s=7200, memory_bytes=2 << 30)
"""10 GB of rows take about 6 minutes of CPU."""

SMALL_BYTES = 1 << 20  # text of this size is read in a thread: a child takes 0.4 s to start
_SMALL_CHARSETS = (None, "utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "windows-1252")
_WRITE_BYTES = 4 << 20

_TOO_MUCH = {
    "time": "reading the file's rows takes too long; split it",
    "memory": "reading the file's rows takes more memory than it may; write smaller rows or row groups",
    "stack": "the file is nested too deep",
    "other": "the file cannot be read: reading it ended the process that tried",
}


@asynccontextmanager
async def converted(
    source: DataSource,
    purpose: DatasetPurpose,
    files: Files,
    settings: Settings,
    slots: asyncio.Semaphore,
) -> AsyncGenerator[Path]:
    """The source's rows as an Arrow stream file. Raises BadRequest: what is wrong with it, and where.

    `slots` bounds how many sources take a thread for long, and a child's memory, at the same time.
    """
    max_bytes = int(settings.max_dataset_gb * 2**30)
    folder = working_folders(settings) / f"dataset-{uuid4().hex}"
    await asyncio.to_thread(folder.mkdir, 0o700, True)
    out = folder / "rows.arrow"
    try:
        if isinstance(source, RowsDataSource):
            await _kindly(lambda: convert.write(encode(source.rows, purpose), str(out)))
        else:
            inputs = await _fetch(source.uri, folder, files, settings, max_bytes, slots)
            await _convert(inputs, purpose, out, max_bytes, slots)
        yield out
    finally:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, True))


def working_folders(settings: Settings) -> Path:
    return settings.home / "tmp"


def sweep_folders(settings: Settings, older_than_s: float) -> int:
    """Delete what killed registrations left; returns how many there were. Blocks."""
    swept = 0
    for folder in working_folders(settings).glob("dataset-*"):
        times = [path.stat().st_mtime for path in (folder, *folder.rglob("*")) if path.exists()]
        if times and time.time() - max(times) > older_than_s:
            shutil.rmtree(folder, ignore_errors=True)
            swept += 1
    return swept


async def _fetch(
    uri: str, folder: Path, files: Files, settings: Settings, max_bytes: int, slots: asyncio.Semaphore
) -> list[Input]:
    if uri.startswith(hub.SCHEME):
        async with slots:
            return await asyncio.to_thread(hub.download, uri, folder, max_bytes)
    path = folder / "source"
    async with open_uri(uri, files, settings, max_bytes=max_bytes, timeout_s=DOWNLOAD_TIMEOUT_S) as download:
        with await asyncio.to_thread(path.open, "wb") as file:
            waiting = bytearray()
            async for chunk in download.chunks:
                waiting += chunk
                if len(waiting) >= _WRITE_BYTES:
                    await asyncio.to_thread(file.write, waiting)
                    waiting = bytearray()
            await asyncio.to_thread(file.write, waiting)
        content_type, charset = download.content_type, download.charset
    return [await asyncio.to_thread(detect, str(path), content_type, uri, charset)]


async def _convert(
    inputs: list[Input], purpose: DatasetPurpose, out: Path, max_bytes: int, slots: asyncio.Semaphore
) -> None:
    fields = [asdict(entry) for entry in inputs]
    if await asyncio.to_thread(_is_small, inputs):
        await _kindly(lambda: convert.convert(fields, purpose, str(out), max_bytes))
        return
    async with slots:
        await _in_child(fields, purpose, out, max_bytes)


async def _in_child(fields: list[dict[str, Any]], purpose: DatasetPurpose, out: Path, max_bytes: int) -> None:
    child = BoundedChild(LIMITS, ["stack.datasets.convert", "pyarrow.parquet"])
    function = "stack.datasets.convert:convert"
    try:
        await asyncio.to_thread(child.call, function, fields, purpose, str(out), max_bytes)
    except Refused as error:
        raise BadRequest(str(error)) from error
    except Exceeded as error:
        raise BadRequest(_TOO_MUCH[error.limit]) from error
    finally:
        child.abort()
        await asyncio.shield(asyncio.to_thread(child.close))


def _is_small(inputs: list[Input]) -> bool:
    """Whether reading it here can take neither much time nor much memory."""
    return all(
        entry.format != "parquet" and not entry.gzipped and (entry.charset or None) in _SMALL_CHARSETS
        for entry in inputs
    ) and sum(Path(entry.path).stat().st_size for entry in inputs) <= SMALL_BYTES  # fmt: skip


async def _kindly(work: Callable[[], object]) -> None:
    """Run it in a thread; what it raises about the rows is told to the caller."""
    try:
        await asyncio.to_thread(work)
    except ValueError as error:
        raise BadRequest(str(error)) from error
