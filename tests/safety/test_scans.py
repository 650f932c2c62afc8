"""What a rule may cost is bounded, and whoever exceeds it gets an error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from stack.bounded import Limits
from stack.errors import BadRequest, Overloaded
from stack.safety import scans
from stack.safety.scans import Scans

SLOW = "((a{0,100}){0,10})*b"  # RE2 needs a thousand steps for each character


@pytest.fixture
async def scan() -> AsyncIterator[Scans]:
    limits = Limits(cpu_s=0.5, wall_s=30, memory_bytes=1 << 28, stack_bytes=16 << 20)
    scan = Scans(limits)
    yield scan
    scan.close()


async def match(scan: Scans, text: str, *patterns: str) -> list[int]:
    found: list[int] = await scan.call("stack.safety.matching:find", [text], patterns, False)
    return found


async def test_a_pattern_that_takes_too_long_is_an_error(scan: Scans) -> None:
    with pytest.raises(BadRequest, match=r"it takes more than 0\.5 s of CPU time; send less"):
        await match(scan, "a" * 1_000_000, SLOW)
    assert await match(scan, "b", SLOW) == [0]


async def test_code_that_takes_too_much_is_an_error(scan: Scans) -> None:
    for code in ("a = b.c(1)\n" * 100_000, "a = [" + "1," * 3_000_000 + "]"):
        with pytest.raises(BadRequest, match=r"cannot be checked: it takes more than|cannot be scanned"):
            await scan.call("stack.safety.python_code:scan", [code], "low", "low")


async def test_slow_calls_do_not_hold_up_a_quick_one(scan: Scans) -> None:
    await asyncio.gather(*(match(scan, "a", "a") for _ in range(2)))  # both children run
    slow = asyncio.create_task(match(scan, "a" * 1_000_000, SLOW))
    await asyncio.sleep(0.05)
    started = time.monotonic()
    assert await match(scan, "ab", "b") == [0]
    assert not slow.done()
    assert time.monotonic() - started < 0.4
    with pytest.raises(BadRequest):
        await slow


async def test_a_cancelled_call_hands_on_no_busy_child(scan: Scans) -> None:
    slow = [asyncio.create_task(match(scan, "a" * 1_000_000, SLOW)) for _ in range(scans.CHILDREN)]
    await asyncio.sleep(0.05)
    for task in slow:
        task.cancel()
    assert await asyncio.gather(*(match(scan, f"a{n}", str(n)) for n in range(8))) == [[0]] * 8
    assert all(
        isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*slow, return_exceptions=True)
    )


async def test_callers_who_wait_are_bounded(scan: Scans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "MAX_WAITING", 1)
    calls = [asyncio.create_task(match(scan, "a", "a")) for _ in range(5)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [list] * 3 + [Overloaded] * 2
