"""Bytes under paths, in a folder or an object store: files, payloads of jobs, checkpoints.

Objects are written whole, which every object store can do; there is no append. Paths are this program's own:
no caller's text becomes one. Messages of errors name neither a path nor a bucket.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from stack.errors import NotReady, StackError
from stack.settings import Settings
from stack.store.filesystems import driver_errors, open_filesystem

T = TypeVar("T")

THREADS = 32  # waiting for an object store takes a thread and no CPU
BLOCK_BYTES = 4 << 20
TEMPORARY = "tmp"
"""Folder of what is being written to a local disk; what a killed process left there is of no use."""


class Lost(StackError):
    """Stored bytes that are not there: deleted meanwhile, or by something other than this program."""

    def __str__(self) -> str:
        return "the stored bytes are gone: they were deleted or replaced meanwhile"


class Storage:
    """Blocking drivers run in threads of this object's own, so that a slow store holds up nobody else."""

    def __init__(self, url: str) -> None:
        self._fs, self._root = open_filesystem(url)
        self._is_local = type(self._fs).__name__ == "LocalFileSystem"
        if self._is_local:
            Path(self._root).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._threads = ThreadPoolExecutor(THREADS, "storage")

    async def write(self, path: str, data: bytes | bytearray) -> None:
        """Put an object there, or replace it: readers see the old or the new one. Durable on return."""
        await self._run(self._write_local if self._is_local else self._write_object, path, data)

    async def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        """An object's bytes from `start` to before `end`. Raises Lost."""
        return bytes(await self._run(self._fs.cat_file, self._full(path), start or None, end))

    async def blocks(self, path: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """As `read`, a block at a time."""
        end = min(await self.size(path), end if end is not None else 1 << 63)
        for first in range(start, end, BLOCK_BYTES):
            yield await self.read(path, first, min(first + BLOCK_BYTES, end))

    def local(self, path: str) -> Path | None:
        """Where an object lies on this machine, to be read only; None in an object store."""
        return Path(self._full(path)) if self._is_local else None

    async def size(self, path: str) -> int:
        """Raises Lost."""
        return int(await self._run(self._fs.size, self._full(path)))

    async def modified(self, path: str) -> datetime:
        """When the object was written, by the store's clock. Raises Lost."""
        found: datetime = await self._run(self._fs.modified, self._full(path))
        return found if found.tzinfo else found.replace(tzinfo=UTC)

    async def find(self, prefix: str) -> list[str]:
        """The paths of all objects in a folder and below, in order."""
        found = await self._run(self._find, prefix)
        start = len(self._root.rstrip("/")) + 1
        return sorted(path[start:] for path in found)

    async def copy(self, source: str, target: str) -> None:
        """Put an object's bytes at another path as well, or in place of what is there. Raises Lost."""
        await self._run(self._copy, source, target)

    async def delete(self, paths: Iterable[str]) -> None:
        """Free these objects; one that is not there is fine."""
        await asyncio.gather(*(self._run(self._delete, path) for path in paths))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(_kindly, function, *arguments))

    def _full(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"

    def _write_object(self, path: str, data: bytes | bytearray) -> None:
        self._fs.pipe_file(self._full(path), bytes(data))

    def _write_local(self, path: str, data: bytes | bytearray) -> None:
        target = Path(self._full(path))
        temporary = Path(self._full(f"{TEMPORARY}/{uuid4().hex}"))
        for folder in (target.parent, temporary.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    def _copy(self, source: str, target: str) -> None:
        if not self._is_local:
            self._fs.copy(self._full(source), self._full(target))
            return
        place, temporary = Path(self._full(target)), Path(self._full(f"{TEMPORARY}/{uuid4().hex}"))
        for folder in (place.parent, temporary.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            shutil.copyfile(self._full(source), temporary)
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(place.parent)

    def _find(self, prefix: str) -> list[str]:
        with suppress(FileNotFoundError):
            return list(self._fs.find(self._full(prefix)))
        return []

    def _delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._full(path))


@asynccontextmanager
async def open_storage(settings: Settings) -> AsyncGenerator[Storage]:
    """The storage of a stack: STACK_STORAGE_URL, or a folder in STACK_HOME."""
    storage = await asyncio.to_thread(_open, settings.storage)
    try:
        yield storage
    finally:
        storage.close()


def _open(url: str) -> Storage:
    if "://" not in url:
        raise ValueError(
            f"STACK_STORAGE_URL={url} is not a URL: write e.g. s3://bucket/stack or file:///folder"
        )
    try:
        return Storage(url)
    except StackError as error:
        raise ValueError(f"STACK_STORAGE_URL: {error}") from error


def _sync_folder(folder: Path) -> None:
    """A rename survives a power cut once its folder is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _kindly(function: Callable[..., T], *arguments: Any) -> T:
    with kind_errors():
        return function(*arguments)


@contextmanager
def kind_errors() -> Iterator[None]:
    """What a driver raises, told without its details, which the log has."""
    try:
        yield
    except FileNotFoundError as error:
        raise Lost from error
    except driver_errors() as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise NotReady("the server's storage is full: delete files that are not needed", None) from error
        if isinstance(error, PermissionError):
            raise NotReady(
                "the server may not use its storage; its operator has to grant that (STACK_STORAGE_URL)", None
            ) from error
        raise NotReady("the server's storage does not answer; try again") from error
