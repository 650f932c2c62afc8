"""What is told of spans, on its way to the store: a bounded queue, and one batch after the other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from stack.engine.base import Meter
from stack.errors import Overloaded, StackError
from stack.telemetry import metrics
from stack.telemetry.spans import EventRecord, SpanRecord
from stack.telemetry.store import Spans

log = logging.getLogger(__name__)

LIMIT = 20_000  # what may wait
BATCH = 1000
PAUSE_S = 0.2  # in which spans gather that nobody waits for
RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class _Told:
    record: SpanRecord
    event: EventRecord | None = None
    kept: asyncio.Future[None] | None = None  # somebody waits for it


class Writer:
    """Belongs to one event loop."""

    def __init__(self, spans: Spans, meter: Meter, limit: int = LIMIT) -> None:
        self._spans, self._meter, self._limit = spans, meter, limit
        self._queue: deque[_Told] = deque()
        self._some, self._urgent = asyncio.Event(), asyncio.Event()  # something waits; somebody does
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._task = asyncio.create_task(self._run())

    async def keep(self, record: SpanRecord, event: EventRecord | None = None) -> None:
        """Returns once it is stored. Raises Overloaded when too much waits, and what the store raises."""
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._add(_Told(record, event, kept)):
            raise Overloaded(f"{self._limit} events wait to be stored; try again later")
        await kept

    def offer(self, records: Sequence[SpanRecord]) -> None:
        """Waits for nothing and raises nothing; what does not fit is dropped, and counted."""
        for record in records:
            if not self._add(_Told(record)):
                self._meter.count(metrics.DROPPED)

    async def flush(self, grace_s: float = 5.0) -> None:
        """Returns once all is stored, or after that time."""
        self._urgent.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_s)

    async def close(self, grace_s: float = 5.0) -> None:
        """Store what waits, if that can be done in time."""
        self._closing = True
        self._some.set()
        self._urgent.set()
        await asyncio.wait([self._task], timeout=grace_s)
        self._task.cancel()
        self._drop(Overloaded("the server is shutting down; try again later"))

    def _add(self, told: _Told) -> bool:
        if len(self._queue) >= self._limit or self._closing:
            return False
        self._queue.append(told)
        self._idle.clear()
        self._some.set()
        if told.kept is not None:
            self._urgent.set()
        return True

    async def _run(self) -> None:
        while not (self._closing and not self._queue):
            await self._some.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._urgent.wait(), PAUSE_S)
            await self._write([self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))])
            if not self._queue:
                self._idle.set()
                if not self._closing:
                    self._some.clear()
                    self._urgent.clear()

    async def _write(self, batch: Sequence[_Told]) -> None:
        try:
            await self._spans.write(
                [told.record for told in batch], [told.event for told in batch if told.event is not None]
            )
        except Exception as error:  # the edge: telemetry fails nobody
            if not isinstance(error, StackError):
                log.exception("%d events could not be stored", len(batch))
            await self._failed(batch, error)
        else:
            self._meter.count(metrics.STORED, len(batch))
            for told in batch:
                if told.kept is not None and not told.kept.done():
                    told.kept.set_result(None)

    async def _failed(self, batch: Sequence[_Told], error: Exception) -> None:
        """Those who wait are told; the rest is tried again, as far as there is room."""
        for told in batch:
            if told.kept is not None and not told.kept.done():
                told.kept.set_exception(error)
        again = [told for told in batch if told.kept is None]
        room = self._limit - len(self._queue) if isinstance(error, StackError) else 0
        self._meter.count(metrics.DROPPED, max(0, len(again) - room))
        self._queue.extendleft(reversed(again[:room]))
        if not self._closing:
            await asyncio.sleep(RETRY_S)

    def _drop(self, error: StackError) -> None:
        for told in self._queue:
            if told.kept is None:
                self._meter.count(metrics.DROPPED)
            elif not told.kept.done():
                told.kept.set_exception(error)
        self._queue.clear()
