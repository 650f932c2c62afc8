"""What a job's function is handed: its request, what is done already, and where to show progress."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from stack.jobs.stages import Stages
from stack.settings import Settings
from stack.store.database import Database
from stack.store.job_items import Item, JobItems
from stack.store.jobs import Job, Lease
from stack.tracing import recorded, traceparent


class JobContext:
    def __init__(self, settings: Settings, database: Database, lease: Lease) -> None:
        self.settings, self.database = settings, database
        self._lease, self._items = lease, JobItems(database)
        self._progress: dict[str, Any] = dict(lease.job.progress)
        self._stop = threading.Event()
        self._stages = Stages(None)

    @property
    def job(self) -> Job:
        """The row as it was claimed; `job.request` is what was submitted."""
        return self._lease.job

    @property
    def lease(self) -> Lease:
        """For other processes that work for this one: what they do is below the job's span."""
        return self._lease

    @property
    def stopping(self) -> bool:
        """The job is cancelled, handed over or lost.

        Async code is cancelled then; code that blocks looks here between its steps, and returns or raises.
        """
        return self._stop.is_set()

    def stop(self) -> None:
        self._stop.set()

    def progress(self, **values: Any) -> None:
        """Show how far the job is, e.g. `progress(done=3, total=10, unit="documents")`.

        Costs nothing: the newest values are written about every second. From any thread.
        """
        if "phase" in values:
            self._stages.next(values["phase"])
        self._progress = {**self._progress, **values}

    @contextmanager
    def stages(self) -> Generator[None]:
        """Within it each phase that `progress` tells of is a span below the current one."""
        self._stages = Stages(recorded())
        self._lease = replace(self._lease, job=replace(self._lease.job, traceparent=traceparent()))
        try:
            yield
        finally:
            self.end_stage()

    def end_stage(self) -> None:
        """What comes now is told by other processes."""
        self._stages.next(None)

    @property
    def shown(self) -> dict[str, Any]:
        """The newest progress."""
        return self._progress

    async def finished_items(self) -> AsyncGenerator[Item]:
        """The items that earlier attempts finished, with what came of each: they are to be left out."""
        last = -1
        while page := await self._items.page(self.job.id, after=last):
            for item in page:
                yield item
            last = page[-1].item

    async def counts(self) -> tuple[int, int]:
        """How many items are finished, and how many of them failed."""
        return await self._items.counts(self.job.id)

    async def finish_items(self, items: Mapping[int, Mapping[str, Any] | None]) -> None:
        """Note items as done. Their effects must be stored before, in a way that may be repeated.

        Raises LeaseLost, on which the job must stop.
        """
        await self._items.finish(self._lease, items)

    async def fail_items(self, errors: Mapping[int, str]) -> None:
        """Note items that cannot be done, each with its reason. Raises LeaseLost."""
        await self._items.fail(self._lease, errors)
