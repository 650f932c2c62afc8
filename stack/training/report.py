"""What the first worker of a run tells the job's row: how far it is, and each checkpoint.

Every write is conditional on the lease that the job's process had when it started the run: a worker that
outlives its job's process can change nothing, and stops.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from stack.engine.base import NoMeter
from stack.errors import StackError
from stack.jobs.stages import Stages
from stack.settings import Settings
from stack.store.database import Database, open_database
from stack.store.job_items import JobItems
from stack.store.jobs import Jobs, Lease, LeaseLost
from stack.telemetry.recording import open_recording
from stack.tracing import parent_of

log = logging.getLogger(__name__)

PROGRESS_S = 1.0  # between two writes of progress
PATIENCE_S = 60.0  # while the database is away


class Report:
    """Writes from a thread of its own; use it as a context."""

    def __init__(self, settings: Settings, lease: Lease, trial: str | None = None) -> None:
        self._settings, self._lease = settings, lease
        parent = lease.job.traceparent
        self._stages = Stages(
            None if parent is None else parent_of(parent), None if trial is None else {"stack.trial": trial}
        )
        self._shown: Mapping[str, Any] = {}
        self._loop = asyncio.new_event_loop()
        self._opened = threading.Event()
        self._left = threading.Event()
        self._lost = False
        self._thread = threading.Thread(
            target=lambda: self._loop.run_until_complete(self._run()), name="report", daemon=True
        )

    def __enter__(self) -> Report:
        self._thread.start()
        self._opened.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._stages.next(None)
        self._left.set()
        self._thread.join(timeout=10.0)

    def progress(self, **values: Any) -> None:
        """Costs nothing: the newest values are written every second. Raises LeaseLost. A phase is a span."""
        if "phase" in values:
            self._stages.next(values["phase"])
        self._shown = {**self._shown, **values}
        if self._lost:
            raise LeaseLost(self._lease.job_id)

    def checkpoint(self, item: int, checkpoint: Mapping[str, Any]) -> None:
        """Note a checkpoint that is stored. Returns when that is durable. Raises LeaseLost."""
        noted = self._patiently(lambda database: JobItems(database).finish(self._lease, {item: checkpoint}))
        asyncio.run_coroutine_threadsafe(noted, self._loop).result()

    async def _run(self) -> None:
        async with (
            open_database(self._settings) as self._database,
            open_recording(self._settings, NoMeter()),
        ):
            self._opened.set()
            written: Mapping[str, Any] = {}
            while not self._left.is_set():
                await asyncio.sleep(PROGRESS_S)
                if (shown := self._shown) == written:
                    continue
                written = shown
                try:
                    await Jobs(self._database).show(self._lease, shown)
                except LeaseLost:
                    self._lost = True
                except StackError as error:
                    log.warning("progress could not be written: %s", error)

    async def _patiently(self, write: Callable[[Database], Awaitable[None]]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await write(self._database)
            except LeaseLost:
                raise
            except StackError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(1.0)
