"""Checks of hostile text by rules, in child processes with bounded time and memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from stack.bounded import BoundedChild, Exceeded, Limits, Refused
from stack.errors import BadRequest, Overloaded, StackError, TooLarge

MAX_CHARS = 10_000_000
LIMITS = Limits(cpu_s=5, wall_s=60, memory_bytes=1 << 30, stack_bytes=16 << 20)
CHILDREN = 2
"""Checks that one process makes at a time: one that takes all its time does not hold up the others."""
MAX_WAITING = 64


class Scans:
    """Children start when they are first needed."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._limits = limits
        self._idle: asyncio.Queue[BoundedChild] = asyncio.Queue()
        self._children = [BoundedChild(limits, []) for _ in range(CHILDREN)]
        self._waiting = 0
        for child in self._children:
            self._idle.put_nowait(child)

    async def call(
        self, function: str, texts: Sequence[str], *arguments: Any, max_chars: int = MAX_CHARS
    ) -> Any:
        """What `package.module:function` returns. Raises BadRequest, TooLarge, Overloaded."""
        if (chars := sum(map(len, texts))) > max_chars:
            raise TooLarge(f"the messages have {chars:,} characters; this shield reads up to {max_chars:,}")
        if self._waiting >= MAX_WAITING:
            raise Overloaded(f"{self._waiting} calls of shields are waiting, as many as are taken")
        self._waiting += 1
        try:
            child = await self._idle.get()
        finally:
            self._waiting -= 1
        try:
            # Shielded: a cancelled request must not hand on a child that is still at work.
            work = asyncio.ensure_future(asyncio.to_thread(child.call, function, texts, *arguments))
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            raise
        except Exceeded as error:
            raise BadRequest(
                f"the messages cannot be checked: {self._reason(error.limit)}; send less, or simpler text"
            ) from error
        except Refused as error:
            raise BadRequest(str(error)) from error
        except RuntimeError as error:
            raise StackError("the shield failed while it read the messages") from error
        finally:
            self._idle.put_nowait(child)

    def _reason(self, limit: str) -> str:
        if limit == "time":
            return f"it takes more than {self._limits.cpu_s:g} s of CPU time"
        if limit == "memory":
            return f"it takes more than {self._limits.memory_bytes >> 20} MiB of memory"
        return "the text is nested too deep" if limit == "stack" else "the checker broke down"

    def close(self) -> None:
        for child in self._children:
            child.close()
