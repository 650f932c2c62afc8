"""Many things under way at a time, and patience with what may pass."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TypeVar

from stack.errors import TRANSIENT

T = TypeVar("T")
R = TypeVar("R")

PATIENCE_S = 120.0  # with a model that is overloaded or being replaced
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0


async def patiently(call: Callable[[], Awaitable[R]], patience_s: float = PATIENCE_S) -> R:
    """Call until it is no longer refused for a reason that may pass; raises that when the patience ends."""
    deadline, pause_s = asyncio.get_running_loop().time() + patience_s, _FIRST_PAUSE_S
    while True:
        try:
            return await call()
        except TRANSIENT as error:
            if getattr(error, "retry_after_s", 1) is None or asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


async def rolling(
    function: Callable[[T], Awaitable[R]], items: Iterable[T], at_once: int
) -> AsyncGenerator[R]:
    """The results of all items as they come, `at_once` of them under way; the first error ends it."""
    waiting = iter(items)
    running: set[asyncio.Future[R]] = set()
    try:
        while True:
            while len(running) < at_once and (item := next(waiting, _END)) is not _END:
                running.add(asyncio.ensure_future(function(item)))  # type: ignore[arg-type]  # not the end
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        for future in running:
            future.cancel()
        await asyncio.gather(*running, return_exceptions=True)


_END = object()
