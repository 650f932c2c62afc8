"""What tests of the batcher have in common."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

from stack.engine.base import Generation, Output
from stack.engine.batching.batcher import Batcher
from tests.engine.toy import VOCABULARY


class CountingMeter:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.gauges: dict[str, float] = {}
        self.observed: dict[str, list[float]] = {}

    def count(self, name: str, value: float = 1.0) -> None:
        self.counts[name] += value  # type: ignore[assignment]  # Counter takes floats, its stub does not

    def gauge(self, name: str, value: float) -> None:
        self.gauges[name] = value

    def observe(self, name: str, value: float) -> None:
        self.observed.setdefault(name, []).append(value)


Make = Callable[..., Batcher]


async def collect(batcher: Batcher, generation: Generation) -> Output:
    whole = Output()
    async for output in batcher.generate(generation):
        assert whole.finish is None
        whole.text += output.text
        whole.token_ids += output.token_ids
        whole.logprobs += output.logprobs
        whole.finish = output.finish
    assert whole.finish is not None
    return whole


def prompt_of(size: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCABULARY - 2), k=size)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # the condition changes in a thread
            await asyncio.sleep(0.001)
