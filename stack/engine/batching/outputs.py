"""From the compute thread to the consumers' event loops: one call for each loop and step."""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop
from collections.abc import Iterable

from stack.engine.base import Output


class OutputStream:
    """What one consumer has not taken yet, merged into one Output. Created in the consumer's event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._pending: Output | None = None
        self._error: Exception | None = None

    async def get(self) -> Output:
        """All that has come since the last call; an error only after everything before it."""
        await self._ready.wait()
        self._ready.clear()
        output, self._pending = self._pending, None
        if self._error is not None:
            if output is None:
                raise self._error
            self._ready.set()
        assert output is not None
        return output

    def put(self, item: Output | Exception) -> None:
        """In the event loop's thread."""
        if isinstance(item, Exception):
            self._error = item
        elif self._pending is None:
            self._pending = item
        else:
            self._pending.text += item.text
            self._pending.token_ids += item.token_ids
            self._pending.logprobs += item.logprobs
            self._pending.finish = item.finish
        self._ready.set()


Delivery = tuple[OutputStream, Output | Exception]


def deliver(deliveries: Iterable[Delivery]) -> list[OutputStream]:
    """Hand items over from any thread. Returns the streams whose event loop is gone."""
    by_loop: dict[AbstractEventLoop, list[Delivery]] = {}
    for delivery in deliveries:
        by_loop.setdefault(delivery[0].loop, []).append(delivery)
    gone: list[OutputStream] = []
    for loop, items in by_loop.items():
        try:
            loop.call_soon_threadsafe(_put_all, items)
        except RuntimeError:  # the loop is closed
            gone += [stream for stream, _ in items]
    return gone


def _put_all(items: list[Delivery]) -> None:
    for stream, item in items:
        stream.put(item)
