"""Keeps a job's lease while the job's own code computes or blocks: a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Literal

from stack.errors import StackError
from stack.jobs.context import JobContext
from stack.settings import Settings
from stack.store.database import Database, open_database
from stack.store.jobs import RENEW_S, Jobs, Lease, LeaseLost

log = logging.getLogger(__name__)

PROGRESS_S = 1.0  # between two writes of progress
POLL_S = 0.05

Reason = Literal["cancelled", "lost"]


class Keeper:
    """Renews the lease until it is left. `stop` is called in the keeper's thread, once at most."""

    def __init__(
        self, settings: Settings, lease: Lease, context: JobContext, stop: Callable[[Reason], None]
    ) -> None:
        self._settings, self._lease, self._context, self._stop = settings, lease, context, stop
        self._left = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="lease", daemon=True)

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join(timeout=10.0)

    async def _run(self) -> None:
        async with open_database(self._settings) as database:
            reason = await self._renew(database)
        if reason is not None and not self._left.is_set():
            self._stop(reason)

    async def _renew(self, database: Database) -> Reason | None:
        """Every few seconds, and when there is progress to show. Returns why the job has to stop."""
        jobs, written, renewed = Jobs(database), self._lease.job.progress, time.monotonic()
        while not self._left.is_set():
            shown, age_s = self._context.shown, time.monotonic() - renewed
            if age_s < (RENEW_S if shown == written else PROGRESS_S):
                await asyncio.sleep(POLL_S)
                continue
            renewed = time.monotonic()
            try:
                # Unchanged progress is not written: other processes of the job may show theirs.
                if await jobs.renew(self._lease, None if shown == written else shown):
                    return "cancelled"
                written = shown
            except LeaseLost:
                return "lost"
            except StackError as error:
                # The database is away for a while. The lease may run out meanwhile; then we are told so.
                log.warning("job %s: the lease could not be renewed: %s", self._lease.job_id, error)
        return None
