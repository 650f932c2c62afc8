"""Sandbox: runs Python code that nobody vouches for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from stack.errors import NotReady, Overloaded
from stack.sandbox.check import Ready, Unavailable, check
from stack.sandbox.command import Limits, Place
from stack.sandbox.execution import Execution, OutputFile
from stack.sandbox.inputs import check_inputs
from stack.sandbox.run import NotStarted, Run
from stack.settings import Settings

__all__ = ["Execution", "OutputFile", "Sandbox"]

MAX_WAITING = 32

logger = logging.getLogger(__name__)


class Sandbox:
    """One for each process. Every run begins with an empty folder and leaves nothing behind."""

    def __init__(self, settings: Settings) -> None:
        timeout_s = settings.sandbox_timeout_s
        self._limits = Limits(timeout_s, 2 * timeout_s, settings.sandbox_memory_mb << 20)
        # Threads of its own, which live as long as the process: a run ends with the thread that started it.
        self._threads = ThreadPoolExecutor(settings.sandboxes_at_once, thread_name_prefix="sandbox")
        self._at_once = settings.sandboxes_at_once
        self._places: asyncio.Queue[Place] = asyncio.Queue()
        self._waiting = 0
        self._checking = asyncio.Lock()
        self._checked: Ready | Unavailable | None = None

    async def unavailable(self) -> str | None:
        """Why code cannot be run here and what to do about it; None when it can. Checked once."""
        found = await self._check()
        return f"{found.reason}; {found.remedy}" if isinstance(found, Unavailable) else None

    async def run(self, code: str, files: Mapping[str, bytes] | None = None) -> Execution:
        """Run `code` as a script in a folder that holds `files`.

        Raises NotReady when unavailable, Overloaded when too many wait, BadRequest or TooLarge for bad input.
        """
        files = dict(files or {})
        check_inputs(code, files)
        ready = await self._check()
        if isinstance(ready, Unavailable):
            raise NotReady(f"code cannot be run here: {ready.reason}; {ready.remedy}", None)
        async with self._place() as place:
            return await self._run(Run(place, self._limits), code, files, ready.extra)

    async def _run(
        self, run: Run, code: str, files: Mapping[str, bytes], extra: Mapping[str, bytes]
    ) -> Execution:
        running = asyncio.get_running_loop().run_in_executor(self._threads, run, code, files, extra)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            run.stop()
            with contextlib.suppress(NotStarted, OSError):
                await running  # so that its place is free when it is gone
            raise
        except (NotStarted, OSError) as error:
            logger.error("the sandbox did not start: %s", error)
            raise NotReady("the sandbox did not start; try again") from error

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[Place]:
        """One of the runs at the same time, in the order of arrival. Raises Overloaded."""
        if self._waiting >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} runs of code wait already", 5)
        self._waiting += 1
        try:
            place = await self._places.get()
        finally:
            self._waiting -= 1
        try:
            yield place
        finally:
            self._places.put_nowait(place)

    async def _check(self) -> Ready | Unavailable:
        async with self._checking:
            if self._checked is None:
                self._checked = await asyncio.to_thread(_checked, self._limits.memory_bytes, self._at_once)
                for place in self._checked.places if isinstance(self._checked, Ready) else ():
                    self._places.put_nowait(place)
            return self._checked


def _checked(memory_bytes: int, at_once: int) -> Ready | Unavailable:
    try:
        return check(memory_bytes, at_once)
    except Unavailable as reason:
        return reason
