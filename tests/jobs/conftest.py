"""Jobs in real processes, started by a reconciler that is stepped by hand."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest

from stack.jobs.logs import log_path
from stack.jobs.processes import JobProcess, command, environment
from stack.jobs.reconciler import Reconciler
from stack.settings import Settings
from stack.store.database import Database, open_database
from stack.store.job_items import JobItems
from stack.store.jobs import Job, Jobs


class LocalLauncher:
    """Children of this process instead of Ray's actors."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.processes: dict[str, JobProcess] = {}
        self.pids: list[int] = []

    async def running(self) -> Collection[str]:
        return [job_id for job_id, process in self.processes.items() if process.alive]

    async def start(self, job: Job) -> None:
        if job.id in await self.running():
            return
        extra = {"STACK_HOME": str(self.home)}
        arguments = command(job.kind, job.id, package="tests.jobs.kinds")
        self.processes[job.id] = JobProcess(
            arguments, log_path(self.home, job.id), environment(extra, os.environ)
        )
        self.pids.append(self.processes[job.id].pid)

    async def stop(self, job_id: str) -> None:
        await asyncio.to_thread(self.processes[job_id].stop, 0.2)


class Farm:
    """A database, a reconciler and its processes."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings, self.jobs, self.items = settings, Jobs(database), JobItems(database)
        self.launcher = LocalLauncher(settings.home)
        self.hurry = 1.0  # how fast the reconciler's clock runs
        self.reconciler = self.new_reconciler()

    def new_reconciler(self, **options: object) -> Reconciler:
        return Reconciler(self.launcher, self.jobs, clock=lambda: time.monotonic() * self.hurry, **options)  # type: ignore[arg-type]

    async def submit(self, kind: str = "count", items: int = 5, **request: object) -> Job:
        file = self.settings.home / "effects"
        file.touch()
        return await self.jobs.submit(kind, {"items": items, "file": str(file), **request})

    async def step_until(self, job: Job, *statuses: str, timeout_s: float = 60.0) -> Job:
        """Step until the job has one of these statuses, or has ended."""
        async with asyncio.timeout(timeout_s):
            while True:
                await self.reconciler.step()
                job = await self.jobs.get(job.id)
                if job.ended or job.status in statuses:
                    return job
                await asyncio.sleep(0.02)

    async def until_items(self, job: Job, number: int) -> None:
        async with asyncio.timeout(60):
            while (await self.items.counts(job.id))[0] < number:
                await self.reconciler.step()
                await asyncio.sleep(0.01)

    def effects(self) -> list[int]:
        return [int(line) for line in (self.settings.home / "effects").read_text().split()]

    def log(self, job: Job) -> str:
        return log_path(self.settings.home, job.id).read_text()

    def close(self) -> None:
        for process in self.launcher.processes.values():
            process.stop(0.1)


@pytest.fixture
async def farm(tmp_path: Path) -> AsyncIterator[Farm]:
    settings = Settings(home=tmp_path / "home", database_url=None)
    async with open_database(settings) as database:
        opened = Farm(settings, database)
        yield opened
        await asyncio.to_thread(opened.close)
