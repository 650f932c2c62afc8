"""Child processes that score: in order, at most so many, and whatever happens to a caller."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from stack.scoring.workers import Patience, Workers

FIND = "stack.scoring.patterns:find"
SLOW = "a" * 40 + "b"


async def test_results_are_in_order_whatever_the_batches(workers: Workers) -> None:
    texts = [str(number) * (1 + number % 2000) for number in range(3000)]
    found = await workers.map(FIND, texts, [r"^\d"], batch_rows=100)
    assert found == [text[0] for text in texts]
    assert await workers.map(FIND, [], [r"\d"]) == []


async def test_one_child_does_for_one_call_after_another(workers: Workers) -> None:
    for _ in range(5):
        await workers.map(FIND, ["1"] * 10, [r"\d"])
    children = workers._pools["stack.scoring.patterns"]._children
    assert sum(child._child is not None for child in children) == 1


async def test_a_cancelled_caller_hands_on_no_busy_child(workers: Workers) -> None:
    tasks = [asyncio.create_task(workers.map(FIND, [SLOW], ["(a+)+$"])) for _ in range(4)]
    await asyncio.sleep(0.2)
    for task in tasks:
        task.cancel()
    quick = [workers.map(FIND, [str(number)], [r"\d"]) for number in range(8)]
    assert await asyncio.gather(*quick) == [[str(number)] for number in range(8)]
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert all(task.cancelled() for task in tasks)


async def test_slow_rows_do_not_hold_up_others(workers: Workers) -> None:
    await asyncio.gather(*(workers.map(FIND, ["1"], [r"\d"]) for _ in range(2)))  # both children run
    slow = asyncio.create_task(workers.map(FIND, [SLOW], ["(a+)+$"]))
    await asyncio.sleep(0.05)
    started = time.monotonic()
    assert await workers.map(FIND, ["2"], [r"\d"]) == ["2"]
    assert not slow.done()
    assert time.monotonic() - started < 0.4
    (lost,) = await slow
    assert lost["score"] is None


def test_patience_grows_with_rows_that_do_no_harm() -> None:
    patience = Patience(2)
    for _ in range(2):
        assert not patience.over
        patience.lose()
    assert patience.over
    patience.gain(10)
    assert (patience.over, patience.lost) == (False, 2)
    patience.lose()
    for _ in range(90):
        patience.skip()
        assert patience.over
    for _ in range(20):
        patience.skip()
    assert not patience.over


async def test_many_slow_rows_cost_a_bounded_time(workers: Workers) -> None:
    """Not 400 times half a second."""
    rows: list[Any] = [SLOW] * 400
    started = time.monotonic()
    found = await workers.map(FIND, rows, ["(a+)+$"], patience=Patience(2), batch_rows=100)
    assert time.monotonic() - started < 40
    assert sum("not tried" in row["error"] for row in found) > 390


async def test_patience_also_ends_with_rows_that_come_alone(workers: Workers) -> None:
    patience = Patience(2)
    found = [(await workers.map(FIND, [SLOW], ["(a+)+$"], patience=patience))[0] for _ in range(20)]
    assert ["not tried" in row["error"] for row in found] == [False] * 2 + [True] * 18
