"""Dynamic batching of embedding calls: one compute thread, batches packed by tokens from all waiting calls.

Calls are served by (priority, arrival + a second for every TOKENS_PER_S tokens): a query that comes after
a call of 10,000 texts goes into the next batch, and the large call is not starved by later ones. A batch
holds as many tokens as the machine computes in BATCH_S, as measured so far, which bounds how long a query
waits for the batch before it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from stack.engine import metrics
from stack.engine.base import Meter, Priority
from stack.engine.embedding.sentence import Item
from stack.engine.embedding.vectors import Vectors
from stack.errors import NotReady

BATCH_S = 0.1
MIN_BATCH_TOKENS, MAX_BATCH_TOKENS = 256, 32_768
TOKENS_PER_S = 5_000


@dataclass(eq=False, slots=True)
class _Call:
    items: Sequence[Item]
    order: Sequence[int]  # by length, so that neighbours share their attention
    vectors: Vectors
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Vectors]
    taken: int = 0
    finished: int = 0
    dropped: bool = False

    def settle(self, error: BaseException | None = None) -> None:
        """Answer the caller, from any thread, if it is still there."""

        def answer() -> None:
            if self.done.done():
                return
            if error is None:
                self.done.set_result(self.vectors)
            else:
                self.done.set_exception(error)

        self.dropped = True
        try:
            self.loop.call_soon_threadsafe(answer)
        except RuntimeError:  # the caller's loop is closed
            return


@dataclass(order=True, slots=True)
class _Entry:
    """A call's place in the queue."""

    priority: Priority
    deadline: float
    number: int
    call: _Call = field(compare=False)


class EmbeddingQueue:
    """Runs `encode` in a thread of its own. `submit` belongs to an event loop, any one."""

    def __init__(
        self,
        encode: Callable[[Sequence[Item]], Vectors],
        dimension: int,
        meter: Meter,
        *,
        threads: int = 1,
        batch_tokens: int | None = None,
    ) -> None:
        """`batch_tokens` fixes the size of a batch; without it, it follows the machine's speed."""
        self._encode = encode
        self._dimension = dimension
        self._meter = meter
        self._threads = threads
        self._heap: list[_Entry] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._batch_tokens = float(batch_tokens or 1024)
        self._learns = batch_tokens is None
        self._thread = threading.Thread(target=self._run, name="embeddings", daemon=True)
        self._thread.start()

    async def submit(self, items: Sequence[Item], priority: Priority) -> Vectors:
        """Vectors of all items, in their order. Cancelling drops what has not been computed."""
        loop = asyncio.get_running_loop()
        call = _Call(
            items,
            sorted(range(len(items)), key=lambda i: items[i].tokens),
            np.empty((len(items), self._dimension), np.float32),
            loop,
            loop.create_future(),
        )
        tokens = sum(item.tokens for item in items)
        entry = _Entry(priority, time.monotonic() + tokens / TOKENS_PER_S, next(self._numbers), call)
        with self._changed:
            if self._closed:
                raise NotReady("the embedding model was closed")
            heapq.heappush(self._heap, entry)
            self._changed.notify()
        try:
            return await call.done
        finally:
            call.dropped = True

    def close(self) -> None:
        """Stop the thread after its batch; waiting calls fail."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        while batch := self._next_batch():
            self._compute(batch)
        for entry in self._heap:
            entry.call.settle(NotReady("the embedding model was closed"))

    def _compute(self, batch: list[tuple[_Call, int]]) -> None:
        items = [call.items[i] for call, i in batch]
        started = time.monotonic()
        try:
            vectors = self._encode(items)
        except Exception as error:  # the thread's edge: only the call that fails alone gets the error
            calls = {call for call, _ in batch}
            for call in calls:
                if len(calls) == 1:
                    call.settle(error)
                else:
                    self._compute([(owner, i) for owner, i in batch if owner is call])
            return
        self._learn(sum(item.tokens for item in items), time.monotonic() - started)
        for (call, i), vector in zip(batch, vectors, strict=True):
            call.vectors[i] = vector
            call.finished += 1
            if call.finished == len(call.items):
                call.settle()

    def _next_batch(self) -> list[tuple[_Call, int]]:
        """Wait for work; empty when closed."""
        batch: list[tuple[_Call, int]] = []
        tokens = 0
        with self._changed:
            while not batch and not self._closed:
                while self._heap:
                    call = self._heap[0].call
                    if call.dropped or call.taken == len(call.items):
                        heapq.heappop(self._heap)
                        continue
                    i = call.order[call.taken]
                    tokens += call.items[i].tokens
                    if batch and tokens > self._batch_tokens:
                        break
                    batch.append((call, i))
                    call.taken += 1
                if not batch and not self._closed:
                    self._changed.wait()
        return batch

    def _learn(self, tokens: int, seconds: float) -> None:
        """Let the next batches take about BATCH_S; small batches say little about large ones."""
        if self._learns and tokens >= self._batch_tokens / 2:
            fitting = tokens * BATCH_S / max(seconds, 1e-6)
            self._batch_tokens = min(
                max(0.8 * self._batch_tokens + 0.2 * fitting, MIN_BATCH_TOKENS), MAX_BATCH_TOKENS
            )
        self._meter.count(metrics.EMBEDDING_TOKENS, tokens)
        self._meter.observe(metrics.EMBEDDING_BATCH_SECONDS, seconds)
