"""Sessions with real MCP servers of the package mcp, over every transport and protocol that is spoken."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from stack.errors import StackError, Timeout, Unauthorized, UpstreamError
from stack.tools.mcp import pool as pools
from stack.tools.mcp.pool import Pool
from tests.tools.mcp.conftest import APPS, Farm
from tests.tools.mcp.server import RELEASED
from tests.tools.servers import served

TOOLS = {"add", "echo", "greet", "fail", "large", "mixed", "grow"}


async def test_tools_are_listed_and_called(farm: Farm) -> None:
    tools = await farm.pool.tools(farm.url, {})
    assert {tool.name for tool in tools} == TOOLS
    assert (await farm.call("add", a=2, b=3)).structured_content == {"result": 5}
    assert await farm.text("greet", person={"name": "Ann"}) == "warm Ann 0 None"
    failed = await farm.call("fail", text="no hay")
    assert failed.is_error
    assert "no hay" in failed.content[0].text


async def test_fifty_calls_take_one_connection_and_one_session(farm: Farm, kind: str) -> None:
    await farm.pool.tools(farm.url, {})
    before = len(farm.server.requests)
    for number in range(50):
        assert await farm.text("echo", text=str(number)) == str(number)
    calls = [request for request in farm.server.requests[before:] if request[0] == "POST"]
    assert len(calls) == 50
    # A call may begin just before the answer of the last one is read to its end: then a second one is used.
    assert len({port for *_, port in calls}) <= 2
    sessions = {headers.get("mcp-session-id") for _, _, headers, _ in calls}
    assert len(sessions) == 1
    assert (None in sessions) is (kind not in ("before 2026", "json"))


async def test_calls_at_the_same_time_share_a_session(farm: Farm) -> None:
    started = time.monotonic()
    texts = await asyncio.gather(*(farm.text("echo", text=str(n), seconds=0.2) for n in range(20)))
    assert texts == [str(n) for n in range(20)]
    assert time.monotonic() - started < 3.5
    assert len(farm.pool._sessions) == 1


async def test_a_list_is_kept_until_the_server_says_that_it_changed(farm: Farm, kind: str) -> None:
    await farm.pool.tools(farm.url, {})
    before = len(farm.server.requests)
    assert len(await farm.pool.tools(farm.url, {})) == len(TOOLS)
    if kind != "newest":  # where listening for changes is a request
        assert len(farm.server.requests) == before
    await asyncio.sleep(0.1)
    assert await farm.text("grow") == "done"
    if kind in ("json", "stateless"):  # these have no way to tell
        return
    await asyncio.sleep(0.2)
    assert len(await farm.pool.tools(farm.url, {})) == len(TOOLS) + 1
    assert await farm.text("grown") == "grown"


async def test_a_server_that_was_restarted_is_called_over_a_new_session(kind: str, pool: Pool) -> None:
    with served(APPS[kind]()) as first:
        farm = Farm(first, pool, f"{first.url}{'/sse' if kind == 'sse' else '/mcp'}")
        assert await farm.text("echo", text="a") == "a"
        port = first.port
        await asyncio.to_thread(first.stop)
        await asyncio.sleep(0.05)  # until the end of what was open is noticed
    with served(APPS[kind](), port) as second:
        assert await farm.text("echo", text="b") == "b"
        assert second.requests


async def test_a_server_that_is_gone_is_an_error_at_once(kind: str, pool: Pool) -> None:
    with served(APPS[kind]()) as server:
        farm = Farm(server, pool, f"{server.url}{'/sse' if kind == 'sse' else '/mcp'}")
        await farm.text("echo", text="a")
        await asyncio.to_thread(server.stop)
        await asyncio.sleep(0.05)  # until the end of what was open is noticed
    started = time.monotonic()
    for _ in range(2):
        with pytest.raises(UpstreamError, match="no connection"):
            await farm.call("echo", text="b")
    assert time.monotonic() - started < 5


async def test_a_call_that_was_cut_off_is_not_repeated(kind: str, pool: Pool) -> None:
    server_app = APPS[kind]()
    with served(server_app) as server:
        farm = Farm(server, pool, f"{server.url}{'/sse' if kind == 'sse' else '/mcp'}")
        await farm.text("echo", text="a")
        call = asyncio.create_task(farm.call("echo", text="b", seconds=30, timeout_s=20))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(server.stop)
        with pytest.raises(StackError):
            await call
        assert farm.pool._sessions == {} or not next(iter(farm.pool._sessions.values())).usable


async def test_a_slow_tool_costs_its_own_call_only(farm: Farm) -> None:
    async def slow() -> None:
        with pytest.raises(Timeout, match=r"within 0\.3 s"):
            await farm.call("echo", text="x", seconds=30, timeout_s=0.3)

    async def quick() -> str:
        await asyncio.sleep(0.1)
        return await farm.text("echo", text="y", seconds=0.5)

    _, text = await asyncio.gather(slow(), quick())
    assert text == "y"  # over the session that the slow one gave up
    assert await farm.text("echo", text="z") == "z"


async def test_unknown_tools_and_arguments_are_told_by_the_server(farm: Farm) -> None:
    assert (await farm.call("no-such-tool")).is_error
    assert (await farm.call("add", a="x")).is_error


async def test_large_answers_are_cut_off(farm: Farm, kind: str) -> None:
    await farm.text("echo", text="a")
    limit = "1048576" if kind == "sse" else "8388608"
    size = 50 << 20 if kind in ("newest", "sse") else 9 << 20  # the server needs a second for fifty
    with pytest.raises(UpstreamError) as raised:
        await farm.call("large", size=size, timeout_s=60)
    assert limit in str(raised.value) or kind == "sse"
    assert await farm.text("echo", text="b") == "b"


async def test_a_caller_that_leaves_costs_nobody_else(farm: Farm) -> None:
    call = asyncio.create_task(farm.call("echo", text="x", seconds=30))
    await asyncio.sleep(0.3)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await farm.text("echo", text="y") == "y"


async def test_other_headers_are_another_session(farm: Farm) -> None:
    for key in ("a", "b", "a"):
        await farm.call("echo", text="x", headers={"authorization": f"Bearer {key}"})
    assert len(farm.pool._sessions) == 2
    sent = {headers.get("authorization") for *_, headers, _ in farm.server.requests}
    assert sent == {"Bearer a", "Bearer b"}


async def test_idle_sessions_are_closed(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "IDLE_S", 0.05)
    monkeypatch.setattr(pools, "SWEEP_S", 0.05)
    pool = Pool({"127.0.0.1"})
    try:
        await pool.call(farm.url, {}, "echo", {"text": "x"}, 5)
        (session,) = pool._sessions.values()
        async with asyncio.timeout(5):
            while not session.ended:  # noqa: ASYNC110  # nobody sends an event
                await asyncio.sleep(0.02)
        assert not pool._sessions
        await pool.call(farm.url, {}, "echo", {"text": "x"}, 5)
    finally:
        await pool.close()


async def test_the_number_of_sessions_is_bounded(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "MAX_SESSIONS", 2)
    RELEASED.clear()
    await farm.call("echo", text="x", headers={"n": "0"})
    busy = asyncio.create_task(farm.call("echo", text="held", timeout_s=60, headers={"n": "0"}))
    await asyncio.sleep(0.05)
    for number in range(1, 4):
        await farm.call("echo", text="x", headers={"n": str(number)})
    assert [dict(headers)["n"] for _, headers in farm.pool._sessions] == ["0", "3"]
    RELEASED.set()
    assert (await busy).content[0].text == "held"


async def test_keys_are_asked_for(pool: Pool) -> None:
    app = APPS["newest"]()

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and (b"authorization", b"Bearer right") not in scope["headers"]:
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b"who?"})
            return
        await app(scope, receive, send)

    with served(guarded) as server:
        farm = Farm(server, pool, f"{server.url}/mcp")
        for headers in ({}, {"authorization": "Bearer wrong"}):
            with pytest.raises(Unauthorized, match="mcp_headers"):
                await farm.call("echo", text="x", headers=headers)
        right = {"authorization": "Bearer right"}
        assert (await farm.call("echo", text="x", headers=right)).content[0].text == "x"
