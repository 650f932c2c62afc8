"""Batch work gives way to interactive requests: in the queue, in the slots, and in the steps."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from torch import Tensor

from stack.engine import metrics
from stack.engine.base import Generation, Output, Priority, Segment, Stop
from stack.engine.batching.schedule import Pace
from stack.errors import Overloaded
from tests.engine.batching.asking import CountingMeter, Make, collect, prompt_of, until
from tests.engine.toy import ToyRunner, greedy


async def test_batch_requests_leave_room_in_the_queue(make: Make) -> None:
    runner = ToyRunner(2)
    runner.go.clear()
    batcher = make(runner, max_queue=4)

    def ask(priority: Priority) -> asyncio.Task[Output]:
        generation = Generation(prompt_of(3), max_tokens=2, priority=priority)
        return asyncio.create_task(collect(batcher, generation))

    tasks = [ask(Priority.BATCH) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="4 requests"):
        await ask(Priority.BATCH)
    tasks += [ask(Priority.INTERACTIVE) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="6 requests"):
        await ask(Priority.INTERACTIVE)
    runner.go.set()
    for output in await asyncio.gather(*tasks):
        assert output.token_ids == greedy(prompt_of(3), 2)


async def test_interactive_requests_are_admitted_first_and_take_batch_slots(make: Make) -> None:
    runner, meter = ToyRunner(2, context_length=4096, step_s=0.001), CountingMeter()
    batcher = make(runner, meter=meter)
    order: list[str] = []

    async def run(name: str, priority: Priority, tokens: int, seed: int) -> None:
        prompt = prompt_of(6, seed)
        output = await collect(batcher, Generation(prompt, max_tokens=tokens, priority=priority))
        assert output.token_ids == greedy(prompt, tokens)
        order.append(name)

    batch = [asyncio.create_task(run(f"batch {i}", Priority.BATCH, 150, i)) for i in range(3)]
    await until(lambda: len(runner.steps) > 5)
    chats = [asyncio.create_task(run(f"chat {i}", Priority.INTERACTIVE, 20, 10 + i)) for i in range(3)]
    await asyncio.gather(*chats)
    assert set(order) == {"chat 0", "chat 1", "chat 2"}
    await asyncio.gather(*batch)
    assert meter.counts[metrics.PREEMPTIONS] == 2


async def test_batch_requests_stand_still_until_a_first_token(make: Make) -> None:
    """Those that write and those whose prompts are computed; then all go on together."""
    runner = ToyRunner(4, context_length=4096)
    batcher = make(runner, prefill_budget=100)
    background = [Generation(prompt_of(20, n), max_tokens=40, priority=Priority.BATCH) for n in range(2)]
    background.append(Generation(prompt_of(900, 2), max_tokens=3, priority=Priority.BATCH))
    tasks = [asyncio.create_task(collect(batcher, each)) for each in background]
    await until(lambda: len(runner.steps) > 2)
    runner.go.clear()
    chat = Generation(prompt_of(450, 3), max_tokens=10)
    asked = asyncio.create_task(collect(batcher, chat))
    await asyncio.sleep(0)
    runner.go.set()
    assert (await asked).token_ids == greedy(list(chat.prompt), 10)
    for task, generation in zip(tasks, background, strict=True):
        assert (await task).token_ids == greedy(list(generation.prompt), generation.max_tokens)
    first = next(i for i, step in enumerate(runner.steps) if list(step[0].tokens) == chat.prompt[:100])
    slot = runner.steps[first][0].slot
    steps = [{segment.slot for segment in segments} for segments in runner.steps[first:]]
    assert steps[:4] == [{slot}] * 4  # 450 tokens, 100 at a time, and the rest
    assert all({slot} < slots for slots in steps[4:13])


async def test_a_pass_of_batch_requests_is_given_up_for_a_chat(make: Make) -> None:
    """Those that write and those whose prompts are computed; all then say what they would have said."""
    runner, meter = ToyRunner(4, context_length=4096), CountingMeter()
    batcher = make(runner, meter=meter, prefill_budget=100)
    background = [Generation(prompt_of(20, n), max_tokens=40, priority=Priority.BATCH) for n in range(2)]
    background.append(Generation(prompt_of(900, 2), max_tokens=3, priority=Priority.BATCH))
    tasks = [asyncio.create_task(collect(batcher, each)) for each in background]
    await until(lambda: len(runner.steps) > 2)
    runner.go.clear()
    await until(lambda: runner.held)
    chat = Generation(prompt_of(30, 3), max_tokens=10)
    asked = asyncio.create_task(collect(batcher, chat))
    await asyncio.sleep(0)
    before = len(runner.steps)
    runner.go.set()
    assert (await asked).token_ids == greedy(list(chat.prompt), 10)
    for task, generation in zip(tasks, background, strict=True):
        assert (await task).token_ids == greedy(list(generation.prompt), generation.max_tokens)
    assert len(runner.stopped) == meter.counts[metrics.STOPPED_STEPS] == 1
    assert len(runner.stopped[0]) == 3
    assert [list(segment.tokens) for segment in runner.steps[before]] == [list(chat.prompt)]


async def test_a_pass_is_given_up_once(make: Make) -> None:
    """However many chats come in, batch requests go on with every second pass."""

    class Hurried(ToyRunner):
        def forward(self, segments: Sequence[Segment], stop: Stop | None = None) -> Tensor:
            if stop is not None:
                stop.set()
            return super().forward(segments, stop)

    runner = Hurried(4)
    batch = Generation(prompt_of(20), max_tokens=30, priority=Priority.BATCH)
    assert (await collect(make(runner), batch)).token_ids == greedy(prompt_of(20), 30)
    assert len(runner.stopped) == len(runner.steps) == 30


async def test_batch_requests_take_turns_while_a_chat_streams(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rows fit a step: that of the chat, and two of the others', which all go on as quickly."""
    monkeypatch.setattr(Pace, "quick", 3)
    runner = ToyRunner(6, context_length=4096)
    batcher = make(runner)
    background = [Generation(prompt_of(20, n), max_tokens=60, priority=Priority.BATCH) for n in range(5)]
    tasks = [asyncio.create_task(collect(batcher, each)) for each in background]
    await until(lambda: [len(segments) for segments in runner.steps[-2:]] == [5, 5])
    chat = Generation(prompt_of(30, 9), max_tokens=20)
    assert (await collect(batcher, chat)).token_ids == greedy(list(chat.prompt), 20)
    for task, generation in zip(tasks, background, strict=True):
        assert (await task).token_ids == greedy(list(generation.prompt), 60)
    first = next(i for i, step in enumerate(runner.steps) if list(step[0].tokens) == chat.prompt)
    slot = runner.steps[first][0].slot
    steps = [{segment.slot for segment in segments} for segments in runner.steps[first + 1 : first + 20]]
    assert all(slot in slots and len(slots) == 3 for slots in steps)
    turns = Counter(other for slots in steps for other in slots - {slot})
    assert len(turns) == 5
    assert max(turns.values()) - min(turns.values()) <= 1
