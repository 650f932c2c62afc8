"""The order and the packing of batches. The encoder here notes what it gets; a vector is a text's length."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from stack.engine.base import NoMeter, Priority
from stack.engine.embedding.queue import EmbeddingQueue
from stack.engine.embedding.sentence import Item
from stack.engine.embedding.vectors import Vectors
from stack.errors import BadRequest, NotReady


class Encoder:
    """Waits at a gate, so that a test decides what is waiting when a batch is made."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.busy = threading.Event()
        self.batches: list[list[str]] = []

    def __call__(self, items: Sequence[Item]) -> Vectors:
        self.busy.set()
        assert self.gate.wait(10)
        contents = [str(item.content) for item in items]
        self.batches.append(contents)
        if "poison" in contents:
            raise BadRequest("poison")
        return np.array([[len(content)] for content in contents], np.float32)


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture
def queue(encoder: Encoder) -> Iterator[EmbeddingQueue]:
    queue = EmbeddingQueue(encoder, 1, NoMeter(), batch_tokens=1000)
    yield queue
    encoder.gate.set()
    queue.close()


def items(*contents: str, tokens: int = 10) -> list[Item]:
    return [Item(tokens, content) for content in contents]


async def occupy(queue: EmbeddingQueue, encoder: Encoder) -> asyncio.Task[Vectors]:
    """Let the thread be busy with a first batch."""
    first = asyncio.create_task(queue.submit(items("first"), Priority.INTERACTIVE))
    await asyncio.to_thread(encoder.busy.wait)
    return first


async def submit(queue: EmbeddingQueue, work: list[Item], priority: Priority) -> asyncio.Task[Vectors]:
    task = asyncio.create_task(queue.submit(work, priority))
    await asyncio.sleep(0)
    return task


async def test_waiting_calls_share_a_batch_and_get_their_own_vectors(
    queue: EmbeddingQueue, encoder: Encoder
) -> None:
    first = await occupy(queue, encoder)
    tasks = [await submit(queue, items("a" * n, "b" * (n + 1)), Priority.INTERACTIVE) for n in range(1, 9)]
    encoder.gate.set()
    assert [vectors.tolist() for vectors in await asyncio.gather(*tasks)] == [
        [[n], [n + 1]] for n in range(1, 9)
    ]
    assert (await first).tolist() == [[5]]
    assert len(encoder.batches) == 2


async def test_batches_hold_a_number_of_tokens(queue: EmbeddingQueue, encoder: Encoder) -> None:
    first = await occupy(queue, encoder)
    task = await submit(queue, items(*"abcdef", tokens=300) + items("long", tokens=5000), Priority.BATCH)
    encoder.gate.set()
    await asyncio.gather(first, task)
    assert [len(batch) for batch in encoder.batches] == [1, 3, 3, 1]
    assert encoder.batches[-1] == ["long"]


async def test_interactive_goes_before_batch_and_small_before_large(
    queue: EmbeddingQueue, encoder: Encoder
) -> None:
    first = await occupy(queue, encoder)
    tasks = [
        await submit(queue, items("batch", tokens=1000), Priority.BATCH),
        await submit(queue, items(*["large"] * 20, tokens=1000), Priority.INTERACTIVE),
        await submit(queue, items("query", tokens=1000), Priority.INTERACTIVE),
    ]
    encoder.gate.set()
    await asyncio.gather(first, *tasks)
    assert [batch[0] for batch in encoder.batches] == ["first", "query", *["large"] * 20, "batch"]


async def test_a_cancelled_call_is_not_computed(queue: EmbeddingQueue, encoder: Encoder) -> None:
    first = await occupy(queue, encoder)
    cancelled = await submit(queue, items("cancelled"), Priority.INTERACTIVE)
    kept = await submit(queue, items("kept"), Priority.INTERACTIVE)
    cancelled.cancel()
    await asyncio.sleep(0)
    encoder.gate.set()
    await asyncio.gather(first, kept)
    assert encoder.batches == [["first"], ["kept"]]


async def test_a_failure_stays_with_its_call(queue: EmbeddingQueue, encoder: Encoder) -> None:
    first = await occupy(queue, encoder)
    poisoned = await submit(queue, items("fine", "poison"), Priority.INTERACTIVE)
    others = [await submit(queue, items(text), Priority.INTERACTIVE) for text in ("b", "cc")]
    encoder.gate.set()
    with pytest.raises(BadRequest, match="poison"):
        await poisoned
    assert [(await task).tolist() for task in (first, *others)] == [[[5]], [[1]], [[2]]]


async def test_closing_fails_what_waits(queue: EmbeddingQueue, encoder: Encoder) -> None:
    first = await occupy(queue, encoder)
    waiting = await submit(queue, items("waiting"), Priority.BATCH)
    closing = asyncio.create_task(asyncio.to_thread(queue.close))
    await asyncio.sleep(0.05)
    encoder.gate.set()
    await first
    with pytest.raises(NotReady):
        await waiting
    await closing
    with pytest.raises(NotReady):
        await queue.submit(items("late"), Priority.INTERACTIVE)
