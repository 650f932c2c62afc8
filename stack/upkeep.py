"""What the stores need from time to time, whoever wrote them: one process does it for all."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from stack import metrics
from stack.agents.records import Records
from stack.agents.turns import end_dead
from stack.datasets.datasets import Datasets
from stack.engine.base import Meter
from stack.files.blobs import Blobs
from stack.files.files import Files
from stack.files.sweep import sweep
from stack.jobs.logs import sweep_orphans
from stack.settings import Settings
from stack.store.database import open_database
from stack.store.jobs import Jobs
from stack.store.lance import open_lance
from stack.store.presence import Presence
from stack.store.storage import open_storage
from stack.telemetry.store import open_spans
from stack.vector.maintenance import Maintenance


@dataclass(slots=True)
class _Duty:
    every_s: float
    work: Callable[[], Awaitable[object]]
    due: float = field(default_factory=time.monotonic)


class Upkeep:
    """Vector indexes, compaction, and whatever was abandoned. Each duty at its own pace, one at a time."""

    def __init__(self, duties: list[_Duty]) -> None:
        self._duties = duties

    async def step(self) -> None:
        for duty in self._duties:
            if time.monotonic() >= duty.due:
                duty.due = time.monotonic() + duty.every_s  # also when it fails
                await duty.work()


class JobCounts:
    """Tells how many jobs there are. What was told of once and is no more is told of as none."""

    def __init__(self, jobs: Jobs, meter: Meter) -> None:
        self._jobs, self._meter = jobs, meter
        self._reported: set[tuple[str, str]] = set()

    async def report(self) -> None:
        counts = await self._jobs.counts()
        for kind, status in counts.keys() | self._reported:
            meter = self._meter.labelled(kind=kind, status=status)
            meter.gauge(metrics.JOBS, counts.get((kind, status), 0))
        self._reported |= counts.keys()


@asynccontextmanager
async def open_upkeep(settings: Settings, meter: Meter) -> AsyncGenerator[Upkeep]:
    async with (
        open_database(settings) as database,
        open_storage(settings) as storage,
        open_lance(settings) as lance,
        open_spans(settings) as spans,
    ):
        presence = Presence(database)
        datasets = Datasets(settings, database, lance, Files(database, Blobs(database, storage)))
        duties = [
            _Duty(5, Maintenance(database, lance, meter).step),
            _Duty(5, JobCounts(Jobs(database), meter).report),
            _Duty(10, lambda: end_dead(Records(database, presence.owner), presence)),
            _Duty(600, presence.sweep),
            _Duty(60, datasets.maintain),
            _Duty(3600, datasets.sweep),
            _Duty(3600, lambda: sweep(database, storage)),
            _Duty(60, lambda: spans.sweep(settings.telemetry_max_spans)),
            _Duty(3600, lambda: sweep_orphans(Jobs(database), storage)),
        ]
        yield Upkeep(duties)
