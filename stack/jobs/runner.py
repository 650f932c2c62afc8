"""What an entry point calls: takes a job, keeps its lease, and writes how it ended."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from stack.engine.base import NoMeter
from stack.errors import TRANSIENT, NotFound, NotReady, Overloaded, StackError
from stack.jobs.context import JobContext
from stack.jobs.keeper import Keeper
from stack.jobs.processes import RUNNER_VARIABLE
from stack.logs import configure_logging
from stack.settings import Settings, get_settings
from stack.store.database import open_database
from stack.store.jobs import ClaimRefused, Jobs, Lease, LeaseLost
from stack.telemetry.recording import open_recording
from stack.tracing import go_on, span

log = logging.getLogger(__name__)

Work = Callable[[JobContext], Awaitable[Mapping[str, Any]]]
"""A job's function: returns the job's result. Whatever it does may be repeated by a later attempt."""

END_TRIES = 60  # seconds that a database may be away when a job ends

Reason = Literal["cancelled", "lost", "terminated"]


def main(work: Work, command: str) -> int:
    """An entry point: `python -m COMMAND --job-id ID`. Returns the process's exit code."""
    parser = argparse.ArgumentParser(
        f"python -m {command}",
        description="Work on a job that was submitted, until it ends.",
        epilog=f"Example: python -m {command} --job-id an-id",
    )
    parser.add_argument("--job-id", required=True, help="as `stack jobs list` shows it")
    return run(work, parser.parse_args().job_id)


def run(work: Work, job_id: str) -> int:
    """Work on a job until it ends or this process is told to; returns the process's exit code.

    0: ended or given back. 1: failed. 2: the job cannot be taken, or another process has taken it.
    """
    settings = get_settings()
    configure_logging(settings.log_level)
    return asyncio.run(_run(work, job_id, settings))


async def _run(work: Work, job_id: str, settings: Settings) -> int:
    async with open_database(settings) as database:
        jobs = Jobs(database)
        try:
            lease = await jobs.claim(job_id, _runner())
        except (ClaimRefused, NotFound) as error:
            log.warning("%s", error)
            return 2
        log.info("job %s begins, attempt %d", job_id, lease.job.attempt)
        async with open_recording(settings, NoMeter()):
            go_on(lease.job.traceparent, lease.job.record_content)
            return await _Run(jobs, lease, JobContext(settings, database, lease)).run(work)


def _runner() -> str:
    """A name for who has the job; a launcher has a say, so that it knows its own."""
    return os.environ.get(RUNNER_VARIABLE) or f"{socket.gethostname()[:32]}-{os.getpid()}"


class _Run:
    """One attempt."""

    def __init__(self, jobs: Jobs, lease: Lease, context: JobContext) -> None:
        self._jobs, self._lease, self._context = jobs, lease, context
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Mapping[str, Any]] | None = None
        self._reason: Reason | None = None

    async def run(self, work: Work) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop, "terminated")
        if RUNNER_VARIABLE in os.environ:
            self._watch_supervisor()
        with Keeper(self._context.settings, self._lease, self._context, self._stop_from_thread):
            self._task = asyncio.ensure_future(_call(work, self._context))
            if self._reason is not None:
                self._task.cancel()
            try:
                end, code = self._completed(await self._task), 0
            except (Exception, asyncio.CancelledError) as error:  # the edge of the job's process
                end, code = (self._stopped(), 0) if self._reason else (self._failed(error), 1)
        # The keeper is gone: nobody writes progress over the end.
        return code if await self._write(end) else 2

    def _stop(self, reason: Reason) -> None:
        if self._reason is None:
            self._reason = reason
            log.info("job %s stops: %s", self._lease.job_id, reason)
            self._context.stop()
            if self._task is not None:
                self._task.cancel()

    def _stop_from_thread(self, reason: Reason) -> None:
        self._context.stop()  # at once, although the loop may be blocked
        self._loop.call_soon_threadsafe(self._stop, reason)

    def _watch_supervisor(self) -> None:
        """Our standard input is a pipe from the process that started us: its end is that process's end."""

        stdin = sys.stdin.fileno()

        def watch() -> None:
            # Not sys.stdin: a thread that waits in it makes Python abort when it exits.
            while os.read(stdin, 4096):
                pass
            self._stop_from_thread("terminated")

        threading.Thread(target=watch, name="supervisor", daemon=True).start()

    def _completed(self, result: Mapping[str, Any]) -> Callable[[], Awaitable[None]]:
        log.info("job %s is completed", self._lease.job_id)
        progress = self._context.shown

        async def end() -> None:
            await self._jobs.renew(self._lease, progress)
            await self._jobs.finish(self._lease, result)

        return end

    def _stopped(self) -> Callable[[], Awaitable[None]]:
        if self._reason == "cancelled":
            return lambda: self._jobs.cancelled(self._lease)
        if self._reason == "terminated":
            return lambda: self._jobs.release(self._lease)

        async def lost() -> None:
            raise LeaseLost(self._lease.job_id)

        return lost

    def _failed(self, error: BaseException) -> Callable[[], Awaitable[None]]:
        job_id = self._lease.job_id
        log.error("job %s fails", job_id, exc_info=error)
        if isinstance(error, TRANSIENT) and getattr(error, "retry_after_s", 1) is not None:
            return lambda: self._jobs.release(self._lease, str(error))
        detail = str(error) if isinstance(error, StackError) else _unforeseen(error, job_id)
        return lambda: self._jobs.fail(self._lease, detail)

    async def _write(self, end: Callable[[], Awaitable[None]]) -> bool:
        """False: another has the job, whose row is no longer ours to write."""
        for left in reversed(range(END_TRIES)):
            try:
                await end()
                return True
            except LeaseLost as error:
                log.warning("%s", error)
                return False
            except (NotReady, Overloaded) as error:
                if left == 0:
                    raise
                log.warning("job %s: its end could not be written: %s", self._lease.job_id, error)
                await asyncio.sleep(1.0)
        return False


async def _call(work: Work, context: JobContext) -> Mapping[str, Any]:
    job = context.job
    attributes = {"stack.job_id": job.id, "stack.job_kind": job.kind, "stack.job_attempt": job.attempt}
    with span(f"job {job.kind}", attributes), context.stages():
        return await work(context)


def _unforeseen(error: BaseException, job_id: str) -> str:
    """Never the message, which may quote paths and contents: those are in the log."""
    return f"{type(error).__name__}: an error that nobody foresaw; `stack jobs logs {job_id}` shows it"
