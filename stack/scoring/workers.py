"""Rows that may be hostile are scored in child processes with bounded time and memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any

from stack.bounded import BoundedChild, Exceeded, Limits, Refused
from stack.errors import BadRequest, StackError
from stack.scoring.scorer import unscored

LIMITS = Limits(cpu_s=1, wall_s=60, memory_bytes=1 << 30, stack_bytes=16 << 20)
MATHEMATICS = Limits(cpu_s=4, wall_s=60, memory_bytes=2 << 30, stack_bytes=16 << 20)
CHILDREN = 2  # of each module, so that a costly row does not hold up all others
BATCH_CHARS = 1 << 18  # of one call
MAX_CHARS = 1_000_000  # of one row


class Patience:
    """How many rows may take all the time there is: some at once, and then one in ten.

    When more do, rows are not tried, but for one in a hundred. So rows that are all made to be slow cost
    minutes, not hours.
    """

    def __init__(self, at_once: int = 5) -> None:
        self._left, self.lost = float(at_once), 0

    @property
    def over(self) -> bool:
        return self._left < 1

    def lose(self) -> None:
        self._left -= 1
        self.lost += 1

    def gain(self, rows: int) -> None:
        self._left += rows / 10

    def skip(self) -> None:
        self._left += 1 / 100


class Workers:
    """Children start when they are first needed. Of one event loop."""

    def __init__(self, limits: Limits = LIMITS, mathematics: Limits = MATHEMATICS) -> None:
        self._limits, self._mathematics = limits, mathematics
        self._pools: dict[str, _Pool] = {}

    async def call(self, function: str, *arguments: Any) -> Any:
        """What the function returns. Raises BadRequest for what it refuses or what is too costly."""
        pool = self._pool(function)
        try:
            return await pool.call(function, *arguments)
        except Exceeded as error:
            raise BadRequest(f"this is too costly: {pool.reason(error)}") from error

    async def map(
        self,
        function: str,
        items: Sequence[Any],
        *arguments: Any,
        batch_rows: int = 256,
        patience: Patience | None = None,
    ) -> list[Any]:
        """One result for each item, in order; an item that is too costly has a row that is not scored.

        `package.module:function` takes a list of items, and `arguments`, and returns a list of results.
        """
        patience = patience or Patience()
        results: list[Any] = [None] * len(items)

        async def run(batch: list[int]) -> None:
            found = await self._batch(function, [items[index] for index in batch], arguments, patience)
            for index, result in zip(batch, found, strict=True):
                results[index] = result

        batches: list[list[int]] = []
        for batch in _batches(items, batch_rows):
            if isinstance(batch, int):
                results[batch] = unscored(f"the row has more than {MAX_CHARS:,} characters")
            else:
                batches.append(batch)
        todo = iter(batches)

        async def work() -> None:
            for batch in todo:
                await run(batch)

        tasks = [asyncio.ensure_future(work()) for _ in range(min(CHILDREN, len(batches)))]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        return results

    async def _batch(
        self, function: str, items: list[Any], arguments: tuple[Any, ...], patience: Patience
    ) -> list[Any]:
        pool = self._pool(function)
        if len(items) == 1 and patience.over:
            patience.skip()
            return [unscored(f"not tried: {patience.lost} rows before took more than they may")]
        try:
            found: list[Any] = await pool.call(function, items, *arguments)
        except Exceeded as error:
            if len(items) == 1:
                patience.lose()
                return [unscored(f"the row cannot be scored: {pool.reason(error)}")]
        else:
            patience.gain(len(items))
            return found
        results = []
        for item in items:
            results += await self._batch(function, [item], arguments, patience)
        return results

    def _pool(self, function: str) -> _Pool:
        module = function.partition(":")[0]
        if module not in self._pools:
            limits = self._mathematics if module.endswith(".mathematics") else self._limits
            self._pools[module] = _Pool(limits, [module])
        return self._pools[module]

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()


class _Pool:
    def __init__(self, limits: Limits, modules: Sequence[str]) -> None:
        self._limits = limits
        # The last one used is used next, so that the second starts only when both have work.
        self._idle: asyncio.LifoQueue[BoundedChild] = asyncio.LifoQueue()
        self._children = [BoundedChild(limits, modules) for _ in range(CHILDREN)]
        for child in self._children:
            self._idle.put_nowait(child)

    async def call(self, function: str, *arguments: Any) -> Any:
        """Raises Exceeded, or BadRequest for what the function refuses."""
        child = await self._idle.get()
        try:
            # Shielded: a cancelled request must not hand on a child that is still at work.
            work = asyncio.ensure_future(asyncio.to_thread(child.call, function, *arguments))
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            raise
        except Refused as error:
            raise BadRequest(str(error)) from error
        except RuntimeError as error:
            raise StackError("a scoring function failed while it read the rows") from error
        finally:
            self._idle.put_nowait(child)

    def reason(self, error: Exceeded) -> str:
        if error.limit == "time":
            return f"it takes more than {self._limits.cpu_s:g} s of CPU time"
        if error.limit == "memory":
            return f"it takes more than {self._limits.memory_bytes >> 20} MiB of memory"
        return "it is nested too deep" if error.limit == "stack" else "what reads it broke down"

    def close(self) -> None:
        for child in self._children:
            child.close()


def _batches(items: Sequence[Any], most: int) -> Iterator[list[int] | int]:
    """The items' indices in batches; one by itself is an item that is too long for any."""
    batch: list[int] = []
    size = 0
    for index, item in enumerate(items):
        chars = len(item) if isinstance(item, str) else len(json.dumps(item, ensure_ascii=False))
        if chars > MAX_CHARS:
            yield index
            continue
        if batch and (len(batch) == most or size + chars > BATCH_CHARS):
            yield batch
            batch, size = [], 0
        batch.append(index)
        size += chars
    if batch:
        yield batch
