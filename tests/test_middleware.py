from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from stack.logs import trace_id
from stack.middleware import BodyLimit, Disconnects, Tracing
from tests.api.asgi import Exchange

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


async def respond(send: Send, body: bytes = b"ok") -> None:
    await send({"type": "http.response.start", "status": 200, "headers": ((b"a", b"b"),)})
    await send({"type": "http.response.body", "body": body})


async def run(app: Any, *arguments: Any, **keywords: Any) -> Exchange:
    exchange = Exchange(app, *arguments, **keywords)
    async with asyncio.timeout(5):
        await exchange.task
    return exchange


async def traced(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, str(trace_id.get()).encode())


def trace_of(exchange: Exchange) -> str:
    return str(dict(exchange.sent[0]["headers"])[b"x-trace-id"], "ascii")


async def test_each_request_has_its_own_trace() -> None:
    exchanges = [await run(Tracing(traced), "GET", "/") for _ in range(3)]
    traces = [trace_of(exchange) for exchange in exchanges]
    assert len(set(traces)) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", trace) for trace in traces)
    assert [exchange.bodies[0].decode() for exchange in exchanges] == traces
    assert exchanges[0].sent[0]["headers"][0] == (b"a", b"b")
    assert trace_id.get() is None


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", True),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", False),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", False),
        ("nonsense", False),
    ],
)
async def test_the_callers_trace_is_taken(header: str, taken: bool) -> None:
    exchange = await run(Tracing(traced), "GET", "/", headers={"traceparent": header})
    assert (trace_of(exchange) == TRACE) is taken


async def test_a_crash_after_the_start_cuts_the_connection() -> None:
    async def crash(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    exchange = Exchange(Tracing(crash), "GET", "/")
    with pytest.raises(ZeroDivisionError):
        await exchange.task
    assert len(exchange.sent) == 1


async def test_a_cancellation_is_untouched() -> None:
    async def hang(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(60)

    exchange = Exchange(Tracing(Disconnects(hang)), "GET", "/")
    await asyncio.sleep(0.02)
    exchange.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await exchange.task
    assert exchange.sent == []


async def read(scope: Scope, receive: Receive, send: Send) -> None:
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await respond(send, body)


async def test_bodies_up_to_the_limit_pass() -> None:
    assert (await run(BodyLimit(read, 5), "POST", "/", "abc")).bodies == [b'"abc"']


async def test_a_large_content_length_is_answered_before_reading() -> None:
    async def unreachable(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    exchange = await run(BodyLimit(unreachable, 5), "POST", "/", headers={"content-length": "6"})
    assert exchange.status == 413


@pytest.mark.parametrize("body", [None, {"a": 1}])
@pytest.mark.parametrize("wait_s", [0.0, 0.05])
async def test_a_client_that_goes_away_cancels_the_handler(body: Any, wait_s: float) -> None:
    """Before the watch begins or after it, and whether or not the request has a body."""
    outcome = []

    async def hang(scope: Scope, receive: Receive, send: Send) -> None:
        if body is not None:
            await receive()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            outcome.append("cancelled")
            raise

    exchange = Exchange(Disconnects(hang), "POST", "/", body)
    await asyncio.sleep(wait_s)
    exchange.disconnect()
    async with asyncio.timeout(1):
        await exchange.task
    assert outcome == ["cancelled"]
    assert not exchange.task.cancelled()


async def test_a_slow_upload_is_read_whole() -> None:
    exchange = Exchange(
        Disconnects(read, delay_s=0.001), "POST", "/", headers={"transfer-encoding": "chunked"}
    )
    exchange._incoming.get_nowait()
    for part in (b"a", b"b", b"c"):
        await asyncio.sleep(0.01)
        exchange.put({"type": "http.request", "body": part, "more_body": part != b"c"})
    await exchange.task
    assert exchange.bodies == [b"abc"]


async def test_a_handler_may_read_late() -> None:
    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.05)
        await read(scope, receive, send)

    assert (await run(Disconnects(late), "POST", "/")).bodies == [b""]
    assert (await run(Disconnects(late), "POST", "/", "x")).bodies == [b'"x"']


async def test_a_handler_may_wait_for_the_end_itself() -> None:
    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send)
        with contextlib.suppress(asyncio.CancelledError):
            while (await receive())["type"] != "http.disconnect":
                pass

    exchange = Exchange(Disconnects(wait), "GET", "/")
    await asyncio.sleep(0.03)
    exchange.disconnect()
    async with asyncio.timeout(1):
        await exchange.task


async def test_no_task_is_left_behind() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.03)
        await respond(send)

    await run(Disconnects(slow), "GET", "/")
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
