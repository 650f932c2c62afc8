"""Servers that are slow, dead, hostile, or no MCP servers: each costs its own calls only, and is told of."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from mcp_types import Tool

from stack.errors import BadRequest, StackError, Timeout, UpstreamError
from stack.tools.mcp import pool as pools
from stack.tools.mcp.attempt import named
from stack.tools.mcp.listing import MAX_TOOLS, definitions
from stack.tools.mcp.pool import Pool
from stack.tools.mcp.results import result_of
from tests.tools.mcp.conftest import APPS
from tests.tools.servers import Served, served

INITIALIZE = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "bad", "version": "1"},
}


def answering(methods: dict[str, Any], sse: bool = False) -> Callable[..., Any]:
    """An MCP server of a few lines: the result of each method, or a function that writes the whole answer."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message.get("more_body"):
                break
        request = json.loads(body) if body else {}
        found = methods.get(request.get("method"))
        if callable(found):
            await found(request, send)
        elif "id" not in request or found is None:
            await answer(send, 202 if "id" not in request and body else 405, b"")
        else:
            reply = {"jsonrpc": "2.0", "id": request["id"], "result": found}
            await answer(send, 200, json.dumps(reply).encode())

    return app


async def answer(
    send: Any, status: int, body: bytes, content_type: str = "application/json", **headers: str
) -> None:
    pairs = [(b"content-type", content_type.encode())]
    pairs += [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def listing(*tools: Any) -> dict[str, Any]:
    return {"initialize": INITIALIZE, "tools/list": {"tools": list(tools)}}


def tool(name: str, schema: Any = None) -> dict[str, Any]:
    return {"name": name, "inputSchema": schema or {"type": "object", "properties": {}}}


@pytest.fixture
def run() -> Any:
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(served(app))


async def test_a_server_that_never_answers(run: Any, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "CONNECT_S", 0.5)

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await asyncio.sleep(60)

    dead, alive = run(silent), run(APPS["newest"]())
    good = f"{alive.url}/mcp"

    async def ask() -> float:
        started = time.monotonic()
        with pytest.raises(Timeout, match="did not answer"):
            await pool.tools(dead.url, {})
        return time.monotonic() - started

    async def others() -> None:
        for _ in range(10):
            async with asyncio.timeout(5):
                await pool.call(good, {}, "echo", {"text": "x"}, 5)

    waited, _ = await asyncio.gather(ask(), others())
    assert 0.4 < waited < 5
    asked = len(dead.requests)
    assert await ask() < 0.4  # it is known to be dead
    assert len(dead.requests) == asked


async def test_a_listing_that_never_comes(run: Any, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stack.tools.mcp.session.LIST_S", 0.3)

    async def hang(request: Any, send: Any) -> None:
        await asyncio.sleep(60)

    server = run(answering({"initialize": INITIALIZE, "tools/list": hang}))
    with pytest.raises(Timeout):
        await pool.tools(server.url, {})


@pytest.mark.parametrize(
    ("status", "body", "content_type"),
    [
        (200, b"<html>hello</html>", "text/html"),
        (200, b"{", "application/json"),
        (200, b"[]", "application/json"),
        (200, b'{"jsonrpc": "2.0", "id": 1, "result": 7}', "application/json"),
        (200, b"data: {\n\n", "text/event-stream"),
        (200, b"\xff\xfe", "text/event-stream"),
        (204, b"", "application/json"),
        (500, b"oops", "text/plain"),
        (404, b"", "text/plain"),
    ],
)
async def test_what_is_no_mcp_server(
    run: Any, pool: Pool, status: int, body: bytes, content_type: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, status, body, content_type)

    started = time.monotonic()
    with pytest.raises(UpstreamError) as raised:
        await pool.tools(run(app).url, {})
    assert "127.0.0.1" in str(raised.value)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "result",
    [7, None, {"content": 7}, {"content": [{"type": "hologram"}]}, {"content": [{"type": "image"}]}],
)
async def test_a_result_that_is_garbage(run: Any, pool: Pool, result: Any) -> None:
    async def garbage(request: Any, send: Any) -> None:
        reply = {"jsonrpc": "2.0", "id": request["id"], "result": result}
        await answer(send, 200, json.dumps(reply).encode())

    server = run(answering({"initialize": INITIALIZE, "tools/call": garbage}))
    for _ in range(2):
        with pytest.raises(StackError):
            await pool.call(server.url, {}, "x", {}, 2)


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_memory_stays_small_whatever_is_sent(run: Any, pool: Pool, encoding: str) -> None:
    import gzip

    sent = 0
    block = bytes(1 << 20) if encoding == "identity" else gzip.compress(bytes(50 << 20))

    async def flood(request: Any, send: Any) -> None:
        nonlocal sent
        headers = [(b"content-type", b"application/json"), (b"content-encoding", encoding.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(50 if encoding == "identity" else 1):
            sent = number + 1
            await send({"type": "http.response.body", "body": block, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    server = run(answering({"initialize": INITIALIZE, "tools/call": flood}))
    await pool.connect(server.url, {})
    tracemalloc.start()
    with pytest.raises(UpstreamError, match="larger than 8388608 bytes"):
        await pool.call(server.url, {}, "x", {}, 30)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 << 20
    assert sent < 50


async def test_a_huge_list_is_cut(run: Any, pool: Pool) -> None:
    server = run(answering(listing(*(tool(f"t{n}") for n in range(MAX_TOOLS + 500)))))
    assert len(await pool.tools(server.url, {})) == MAX_TOOLS


async def test_pages_without_an_end_are_cut(run: Any, pool: Pool) -> None:
    pages = 0

    async def page(request: Any, send: Any) -> None:
        nonlocal pages
        pages += 1
        result = {"tools": [tool(f"t{pages}")], "nextCursor": str(pages)}
        await answer(
            send, 200, json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}).encode()
        )

    server = run(answering({"initialize": INITIALIZE, "tools/list": page}))
    assert len(await pool.tools(server.url, {})) == pages == 50


async def test_hostile_schemas_and_names(run: Any, pool: Pool) -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}
    deep: Any = {"type": "string"}
    for _ in range(60):
        deep = {"type": "array", "items": deep}
    tools = [
        tool("number", {"type": "object", "properties": {"x": {"default": float("nan")}}}),
        tool("infinite", {"type": "object", "properties": {"x": {"maximum": float("inf")}}}),
        tool("recursive", {**node, "$defs": {"node": {"anyOf": [{"$ref": "#/$defs/node"}, node]}}}),
        tool("deep", {"type": "object", "properties": {"x": deep}}),
        tool("elsewhere", {"type": "object", "properties": {"x": {"$ref": "http://10.0.0.1/secret"}}}),
        tool("two words"),
        tool("many", {"type": "object", "properties": {f"p{n}": {} for n in range(200)}}),
        tool("parameter", {"type": "object", "properties": {"a b": {}}}),
        tool("double"),
        tool("double"),
        tool("large", {"type": "object", "properties": {"x": {"description": "x" * 100_000}}}),
    ]
    found = {one.name: one for one in await pool.tools(run(answering(listing(*tools))).url, {})}
    assert set(found) == {"recursive", "deep", "elsewhere", "double", "large"}
    types = {name: [p.parameter_type for p in one.parameters or []] for name, one in found.items()}
    assert types["recursive"] == ["any"]
    assert types["elsewhere"] == ["any"]
    assert types["deep"][0].startswith("list[list[")
    assert "input_schema" not in (found["large"].metadata or {})


async def test_a_number_without_an_end(run: Any, pool: Pool) -> None:
    async def number(request: Any, send: Any) -> None:
        result = f'{{"content": [], "structuredContent": {{"x": {"9" * 5000}, "y": NaN}}}}'
        await answer(send, 200, f'{{"jsonrpc": "2.0", "id": {request["id"]}, "result": {result}}}'.encode())

    server = run(answering({"initialize": INITIALIZE, "tools/call": number}))
    with pytest.raises(StackError):
        result_of(await pool.call(server.url, {}, "x", {}, 2))


async def test_a_pattern_in_an_output_schema_does_not_stop_the_loop(run: Any, pool: Pool) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": "^(a+)+$"}}}
    result = {"content": [], "structuredContent": {"x": "a" * 40 + "!"}}
    methods = listing({**tool("evil"), "outputSchema": schema}) | {"tools/call": result}
    server = run(answering(methods))
    await pool.tools(server.url, {})
    async with asyncio.timeout(10):
        assert (await pool.call(server.url, {}, "evil", {}, 5)).structured_content == {"x": "a" * 40 + "!"}


async def test_redirects_to_private_addresses_are_not_followed(run: Any) -> None:
    target = run(APPS["newest"]())

    async def redirect(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, 307, b"", location=f"{target.url}/mcp")

    server = run(redirect)
    pool = Pool({server.host})
    try:
        with pytest.raises(UpstreamError):
            await pool.tools(server.url, {})
    finally:
        await pool.close()
    assert target.requests == []


async def test_private_addresses_are_refused(run: Any) -> None:
    server: Served = run(APPS["newest"]())
    pool = Pool(())
    try:
        for url in (f"{server.url}/mcp", "http://10.0.0.1/mcp", "http://169.254.169.254/sse"):
            with pytest.raises(BadRequest, match="not a public host"):
                await pool.tools(url, {})
    finally:
        await pool.close()
    assert server.requests == []


async def test_an_endpoint_of_sse_that_leads_away_is_refused(
    run: Any, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "CONNECT_S", 0.5)
    other = run(APPS["newest"]())

    async def away(scope: Any, receive: Any, send: Any) -> None:
        body = f"event: endpoint\ndata: {other.url}/messages\n\n".encode()
        await answer(send, 200, body, "text/event-stream")

    with pytest.raises(StackError):
        await pool.tools(f"{run(away).url}/sse", {})
    assert other.requests == []


def test_no_more_tools_than_can_be_told_of() -> None:
    tools = [Tool(name=f"t{n}", input_schema={"type": "object"}) for n in range(3)]
    assert [one.name for one in definitions(tools, "http://x/")] == ["t0", "t1", "t2"]


def test_queries_of_endpoints_are_not_told() -> None:
    assert named("https://x.org/mcp?key=secret#a") == "'https://x.org/mcp'"
