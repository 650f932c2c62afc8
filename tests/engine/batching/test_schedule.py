"""Who is next, and how the prompt tokens of a step are shared out."""

from __future__ import annotations

import random

import pytest

from stack.engine.base import Priority
from stack.engine.batching.schedule import (
    FEWEST_QUICK,
    MAX_BUDGET,
    MIN_BUDGET,
    QUICK_STEP_S,
    STEP_S,
    Pace,
    Waiting,
    share,
)


def test_interactive_first_then_by_arrival() -> None:
    waiting: Waiting[str] = Waiting()
    for name in ("b1", "i1", "b2", "i2"):
        waiting.append(name, Priority.BATCH if name[0] == "b" else Priority.INTERACTIVE)
    waiting.put_back("b0", Priority.BATCH)
    assert len(waiting) == 5
    assert waiting.remove("i2")
    assert not waiting.remove("i2")
    order = []
    while (name := waiting.peek()) is not None:
        order.append(name)
        waiting.remove(name)
    assert order == ["i1", "b0", "b1", "b2"]


@pytest.mark.parametrize(
    ("remaining", "budget", "shares"),
    [
        ([], 100, []),
        ([30], 100, [30]),
        ([500], 100, [100]),
        ([100, 100, 100], 1000, [100, 100, 100]),  # all fit
        ([1000, 20], 200, [180, 20]),  # a short one behind a long one is done at once
        ([1000, 1000, 20], 400, [280, 100, 20]),
        ([100] * 6, 300, [100, 100, 64, 36, 0, 0]),
    ],
)
def test_shares(remaining: list[int], budget: int, shares: list[int]) -> None:
    assert share(remaining, budget) == shares


def test_shares_use_the_budget_and_little_more() -> None:
    draw = random.Random(0)
    for _ in range(300):
        remaining = [draw.randrange(1, 500) for _ in range(draw.randrange(1, 20))]
        budget = draw.randrange(1, 1000)
        shares = share(remaining, budget)
        assert sum(shares) == (sum(remaining) if sum(remaining) <= 1.5 * budget else budget)
        assert shares[0] > 0
        assert all(0 <= taken <= tokens for taken, tokens in zip(shares, remaining, strict=True))


def test_the_budget_follows_the_machine() -> None:
    for seconds_per_token in (1e-4, 1e-3):
        pace = Pace()
        for _ in range(30):
            pace.observe(0.05, 0, 3)
            pace.observe(0.15, 0, 20)
            pace.observe(0.05 + pace.budget(2) * seconds_per_token, pace.budget(2), 2)
            pace.observe(0.15 + pace.budget(20) * seconds_per_token, pace.budget(20), 20)
        for rows, seconds in ((0, STEP_S), (2, STEP_S - 0.05), (8, STEP_S - 0.05), (20, STEP_S / 2)):
            assert pace.budget(rows) == pytest.approx(seconds / seconds_per_token, rel=0.1)
    slow, fast = Pace(), Pace()
    for _ in range(50):
        slow.observe(10.0, MIN_BUDGET, 0)
        fast.observe(1e-6, 1000, 0)
    assert slow.budget(0) == MIN_BUDGET
    assert fast.budget(0) == MAX_BUDGET
    assert Pace(77).budget(5) == 77


def test_what_fits_a_short_step() -> None:
    pace = Pace()
    pace.observe(0.1, 100, 0)
    assert pace.quick == QUICK_STEP_S / 0.001
    for _ in range(50):
        pace.observe(10.0, MIN_BUDGET, 0)
    assert pace.quick == FEWEST_QUICK
    for _ in range(50):
        pace.observe(1e-6, 1000, 0)
    assert pace.quick == MAX_BUDGET


@pytest.mark.parametrize("token_s", [0.0005, 0.002, 0.01])
def test_short_steps_follow_how_long_they_took(token_s: float) -> None:
    """Each costs 20 ms and so much a token, more or less than what prompts let expect."""

    def seconds(tokens: int) -> float:
        return 0.02 + token_s * tokens

    pace = Pace()
    pace.observe(0.1, 100, 0)
    for _ in range(60):
        pace.observe_quick(seconds(pace.quick), pace.quick)
    assert seconds(pace.quick) == pytest.approx(QUICK_STEP_S, abs=token_s)
    fits = pace.quick
    pace.observe_quick(0.02, 1)  # there was little to do
    assert pace.quick == fits
    for _ in range(60):
        pace.observe_quick(10.0, pace.quick)
    assert pace.quick == FEWEST_QUICK
    for _ in range(60):
        pace.observe_quick(seconds(pace.quick), pace.quick)
    assert seconds(pace.quick) == pytest.approx(QUICK_STEP_S, abs=token_s)


def test_where_one_row_takes_long_a_short_step_takes_twice_that() -> None:
    pace = Pace()
    pace.observe(0.2, 0, 1)
    for _ in range(60):
        pace.observe_quick(0.2 + 0.001 * pace.quick, pace.quick)
    assert pace.quick == pytest.approx(200, rel=0.05)
