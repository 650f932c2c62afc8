from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import pytest
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from stack import sse
from stack.errors import NotReady
from stack.sse import event_stream
from tests.api.asgi import Exchange


class Event(BaseModel):
    n: int | str


def app(events: Callable[[], AsyncIterator[Event]]) -> Any:
    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await (await event_stream(events()))(scope, receive, send)

    return call


async def test_an_empty_stream_is_empty() -> None:
    async def nothing() -> AsyncGenerator[Event]:
        return
        yield

    exchange = Exchange(app(nothing), "GET", "/")
    await exchange.task
    assert (exchange.status, exchange.bodies) == (200, [b""])


async def test_what_is_ready_is_one_write() -> None:
    waiting = asyncio.Event()

    async def events() -> AsyncGenerator[Event]:
        for n in range(3):
            yield Event(n=n)
        await waiting.wait()
        yield Event(n="a\nb")

    exchange = Exchange(app(events), "GET", "/")
    await exchange.wait_for_bodies(1)
    assert exchange.bodies == [b'data: {"n":0}\n\ndata: {"n":1}\n\ndata: {"n":2}\n\n']
    waiting.set()
    await exchange.task
    assert exchange.bodies[1:] == [b'data: {"n":"a\\nb"}\n\n', b""]


async def test_keeps_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.02)

    async def events() -> AsyncGenerator[Event]:
        yield Event(n=0)
        await asyncio.sleep(0.07)
        yield Event(n=1)

    exchange = Exchange(app(events), "GET", "/")
    await exchange.task
    assert exchange.bodies.count(b": keep-alive\n\n") in (2, 3)
    assert exchange.bodies[-2] == b'data: {"n":1}\n\n'


async def test_an_error_before_the_first_event_is_raised() -> None:
    closed = []

    async def events() -> AsyncGenerator[Event]:
        try:
            raise NotReady("loading")
            yield
        finally:
            closed.append(True)

    with pytest.raises(NotReady, match="loading"):
        await event_stream(events())
    assert closed == [True]


async def test_work_that_is_cancelled_elsewhere_does_not_hang() -> None:
    async def events() -> AsyncGenerator[Event]:
        yield Event(n=0)
        raise asyncio.CancelledError

    exchange = Exchange(app(events), "GET", "/")
    async with asyncio.timeout(1):
        await exchange.task
    assert b"cancelled" in exchange.bodies[-2]


async def test_a_slow_client_holds_up_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_WAITING", 4)
    made, may_send = 0, asyncio.Event()

    async def events() -> AsyncGenerator[Event]:
        nonlocal made
        for made in range(1, 21):
            yield Event(n=made)

    async def send(message: Any) -> None:
        bodies.append(message.get("body", b""))
        await may_send.wait()

    bodies: list[bytes] = []
    response = await event_stream(events())
    task = asyncio.ensure_future(response({"type": "http"}, None, send))  # type: ignore[arg-type]
    await asyncio.sleep(0.01)
    assert made == 4
    may_send.set()
    await task
    assert b"".join(bodies).count(b"data: ") == 20


async def test_events_and_their_cleanup_run_in_one_task() -> None:
    tasks = []

    async def events() -> AsyncGenerator[Event]:
        try:
            for n in range(3):
                tasks.append(asyncio.current_task())
                yield Event(n=n)
                await asyncio.sleep(0.01)
            await asyncio.sleep(60)
        finally:
            tasks.append(asyncio.current_task())

    exchange = Exchange(app(events), "GET", "/")
    await exchange.wait_for_bodies(3)
    exchange.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await exchange.task
    assert len(tasks) == 4
    assert len(set(tasks)) == 1


async def test_a_client_that_fails_to_take_events_closes_the_source() -> None:
    closed = []

    async def events() -> AsyncGenerator[Event]:
        try:
            while True:
                yield Event(n=0)
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise ConnectionResetError

    response = await event_stream(events())
    async with asyncio.timeout(1):
        await response({"type": "http"}, None, send)  # type: ignore[arg-type]
    assert closed == [True]
