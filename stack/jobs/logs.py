"""What a job's process prints: a file on its node, and a copy on the storage where nodes share one."""

from __future__ import annotations

import asyncio
import logging
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from stack.errors import NotFound, StackError
from stack.settings import Settings

if TYPE_CHECKING:
    from stack.store.jobs import Jobs
    from stack.store.storage import Storage

log = logging.getLogger(__name__)

COPY_S = 5.0
COPIED_BYTES = 1 << 20  # the end of a longer log


def log_path(home: Path, job_id: str) -> Path:
    """Where all attempts of a job on this node write."""
    return home / "jobs" / f"{job_id}.log"


def files_of(job_id: str) -> str:
    """The folder of a job in the storage: what it works on, and its log."""
    return f"jobs/{job_id}"


async def tail(settings: Settings, storage: Storage, job_id: str, max_bytes: int) -> str:
    """The end of a job's log, whole lines; empty if there is none (yet)."""
    if settings.storage_url:
        from stack.store.storage import Lost

        try:
            data = await storage.read(_copy_of(job_id))
        except Lost:
            data = b""
    else:
        data = await asyncio.to_thread(_end_of, log_path(settings.home, job_id), max_bytes)
    if len(data) > max_bytes:
        data = data[-max_bytes:].partition(b"\n")[2]
    return data.decode("utf-8", "replace")


async def sweep(settings: Settings, storage: Storage, job_id: str) -> None:
    """Remove a job's log and its folder in the storage."""
    await storage.delete(await storage.find(files_of(job_id)))
    await asyncio.to_thread(log_path(settings.home, job_id).unlink, missing_ok=True)


async def sweep_orphans(jobs: Jobs, storage: Storage, older_than: timedelta = timedelta(days=1)) -> int:
    """Free what was stored for jobs that never came to be, since their submission was killed."""
    orphans = []
    for path in await storage.find("jobs"):
        job_id = path.split("/")[1]
        try:
            await jobs.get(job_id)
        except NotFound:
            if datetime.now(UTC) - await storage.modified(path) > older_than:
                orphans.append(path)
    await storage.delete(orphans)
    return len(orphans)


class Copier:
    """Copies a log to the storage while it grows; does nothing where there is one machine only."""

    def __init__(self, settings: Settings, job_id: str) -> None:
        self._settings, self._job_id = settings, job_id
        self._path = log_path(settings.home, job_id)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="log", daemon=True)

    def start(self) -> None:
        if self._settings.storage_url:
            self._thread.start()

    def end(self) -> None:
        """Copy what is left."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30.0)

    async def _run(self) -> None:
        from stack.store.storage import open_storage

        async with open_storage(self._settings) as storage:
            before, copied = await self._earlier(storage), b""
            while True:
                last = await asyncio.to_thread(self._ended.wait, COPY_S)
                data = _end_of(self._path, COPIED_BYTES)
                if data != copied:
                    copied = data
                    await self._copy(storage, (before + data)[-COPIED_BYTES:])
                if last:
                    return

    async def _earlier(self, storage: Storage) -> bytes:
        """What attempts on other nodes printed; those on this one are in the file."""
        try:
            return b"" if self._path.stat().st_size else await storage.read(_copy_of(self._job_id))
        except (FileNotFoundError, StackError):
            return b""

    async def _copy(self, storage: Storage, data: bytes) -> None:
        try:
            await storage.write(_copy_of(self._job_id), data)
        except StackError as error:
            log.warning("job %s: its log could not be copied: %s", self._job_id, error)


def _copy_of(job_id: str) -> str:
    return f"{files_of(job_id)}/log"


def _end_of(path: Path, max_bytes: int) -> bytes:
    """A little more than asked for, so that a cut line can be told."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - max_bytes - 1))
            return file.read()
    except FileNotFoundError:
        return b""
