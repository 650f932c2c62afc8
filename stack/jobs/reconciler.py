"""Which jobs should run, compared with which do. One `step` brings the processes nearer to the rows.

Every action may be repeated, so a step that was interrupted or ran twice does no harm: a process that is
started twice finds the job taken, and a row that changed meanwhile is left alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from stack.errors import StackError
from stack.jobs.processes import SUPERVISED
from stack.store.job_items import JobItems
from stack.store.jobs import Job, Jobs, LeaseLost

log = logging.getLogger(__name__)

START_S = 120.0  # a process that has not taken its job by then hangs
CANCEL_S = 15.0  # a runner that is asked to stop has that long
LINGER_S = 15.0  # a process whose job has ended has that long
LONGEST_PAUSE_S = 30.0  # between two attempts
SWEEP_S = 600.0


class Launcher(Protocol):
    """Starts and stops the processes of jobs. They set `STACK_JOB_RUNNER`, see `stack.jobs.processes`."""

    async def running(self) -> Collection[str]:
        """Ids of the jobs whose process is starting or alive."""

    async def start(self, job: Job) -> None:
        """Start a process, unless one is running."""

    async def stop(self, job_id: str) -> None:
        """End the process, by force if need be. May return before it has ended."""


@dataclass(slots=True)
class _Starts:
    """What this reconciler did for a job since it saw the last attempt begin."""

    attempt: int
    number: int = 0
    last: float = float("-inf")


class Reconciler:
    """`sweep_files` removes what a job has beside its rows."""

    def __init__(
        self,
        launcher: Launcher,
        jobs: Jobs,
        *,
        attempts: int = 5,
        at_once: int = 4,
        retention: timedelta = timedelta(days=7),
        sweep_files: Callable[[str], Awaitable[None]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._launcher, self._jobs, self._items = launcher, jobs, JobItems(jobs.database)
        self._attempts, self._at_once = attempts, at_once
        self._retention, self._sweep_files = retention, sweep_files
        self._clock = clock
        self._starts: dict[str, _Starts] = {}
        self._since: dict[tuple[str, str], float] = {}  # (job, what is waited for) -> since when
        self._swept = float("-inf")
        self._free = 0  # how many more processes may be started

    async def step(self) -> None:
        running = set(await self._launcher.running())  # first: a job that ends meanwhile does no harm
        active = {job.id: job for job in await self._jobs.active()}
        self._free = self._at_once - len(running)
        for job in active.values():
            try:
                await self._step(job, job.id in running)
            except LeaseLost:
                log.debug("job %s changed meanwhile", job.id)
        for job_id in running - active.keys():
            await self._stop_after(job_id, "end", LINGER_S)
        self._forget(running | active.keys())
        if self._clock() - self._swept > SWEEP_S:
            self._swept = self._clock()
            await self._sweep()

    async def _step(self, job: Job, running: bool) -> None:
        dead = job.status == "in_progress" and not running and _is_ours(job)
        if dead:  # before its lease runs out
            await self._jobs.take_away(job)
        elif job.status == "in_progress" and not job.lease_ran_out(datetime.now(UTC)):
            if job.cancel_requested and running:
                await self._stop_after(job.id, "cancel", CANCEL_S)
        elif running and job.runner is not None:
            log.warning("job %s: its process does not keep its lease", job.id)
            await self._launcher.stop(job.id)
        elif running:
            await self._stop_after(job.id, f"start {job.attempt}", START_S)
        else:
            await self._start_or_end(job)

    async def _start_or_end(self, job: Job) -> None:
        """Nobody works on the job."""
        if job.cancel_requested:
            await self._jobs.end(job, "cancelled")
            return
        starts = self._starts.get(job.id)
        if starts is None or starts.attempt != job.attempt:
            starts = self._starts[job.id] = _Starts(job.attempt)
        if reason := self._spent(job, starts):
            log.error("job %s: %s", job.id, reason)
            await self._jobs.end(job, "failed", reason)
            return
        if self._free <= 0 or self._pauses(job, starts):
            return
        if job.runner is not None:  # so that the new process is not taken for the old one
            await self._jobs.take_away(job)
        log.info("starting job %s", job.id)
        starts.number, starts.last = starts.number + 1, self._clock()
        self._free -= 1
        await self._launcher.start(job)

    def _spent(self, job: Job, starts: _Starts) -> str | None:
        """Why the job is not started any more."""
        last = (
            f"; the last time: {job.detail}" if job.detail else f"; `stack jobs logs {job.id}` may tell why"
        )
        if job.fruitless >= self._attempts:
            return f"its process died {job.fruitless} times in a row without finishing anything{last}"
        if starts.number >= self._attempts:
            return f"its process ended {starts.number} times before it began to work{last}"
        return None

    def _pauses(self, job: Job, starts: _Starts) -> bool:
        """After attempts that came to nothing there is a pause, a longer one each time."""
        failures = max(job.fruitless, starts.number)
        pause_s = min(2.0 ** (failures - 1), LONGEST_PAUSE_S) if failures else 0.0
        dead_since = self._first_seen(job.id, f"dead {job.attempt}")
        return self._clock() - max(starts.last, dead_since) < pause_s

    async def _stop_after(self, job_id: str, what: str, seconds: float) -> None:
        if self._clock() - self._first_seen(job_id, what) > seconds:
            log.warning("job %s: stopping its process (%s)", job_id, what)
            await self._launcher.stop(job_id)

    def _first_seen(self, job_id: str, what: str) -> float:
        return self._since.setdefault((job_id, what), self._clock())

    def _forget(self, known: Collection[str]) -> None:
        self._since = {key: since for key, since in self._since.items() if key[0] in known}
        self._starts = {job_id: starts for job_id, starts in self._starts.items() if job_id in known}

    async def _sweep(self) -> None:
        """Remove the items and files of jobs that ended long ago; their rows stay."""
        for job_id in await self._items.unswept(datetime.now(UTC) - self._retention):
            try:
                if self._sweep_files is not None:
                    await self._sweep_files(job_id)
                await self._items.sweep(job_id)
            except StackError as error:
                log.warning("job %s: what it left could not be removed yet: %s", job_id, error)


def _is_ours(job: Job) -> bool:
    """Whether a launcher's process holds it, and not one that somebody started by hand."""
    return job.runner is not None and job.runner.startswith(f"{SUPERVISED}.")
