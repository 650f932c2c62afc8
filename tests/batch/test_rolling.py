from __future__ import annotations

import asyncio

import pytest

from stack.batch.rolling import patiently, rolling
from stack.errors import BadRequest, NotReady, Overloaded


async def test_all_come_and_only_so_many_are_under_way() -> None:
    under_way = most = 0

    async def double(number: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001 * (number % 3))
        under_way -= 1
        return 2 * number

    assert sorted([found async for found in rolling(double, range(50), 7)]) == list(range(0, 100, 2))
    assert most == 7
    assert [found async for found in rolling(double, [], 7)] == []


async def test_the_first_error_ends_it_and_what_is_under_way() -> None:
    cancelled = []

    async def fail(number: int) -> None:
        if number == 3:
            raise BadRequest("three")
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    with pytest.raises(BadRequest, match="three"):
        async for _ in rolling(fail, range(1000), 5):
            pass
    assert sorted(cancelled) == [0, 1, 2, 4]


async def test_patience() -> None:
    left = [Overloaded("busy"), NotReady("starting")]

    async def call() -> str:
        if left:
            raise left.pop()
        return "here"

    assert await patiently(call) == "here"


@pytest.mark.parametrize("error", [BadRequest("never"), NotReady("failed to start", None)])
async def test_what_will_not_pass_is_raised_at_once(error: Exception) -> None:
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(type(error)):
        await patiently(call)
    assert calls == 1


async def test_patience_ends() -> None:
    async def call() -> None:
        raise Overloaded("busy")

    with pytest.raises(Overloaded):
        await asyncio.wait_for(patiently(call, 0.3), 5)
