"""Calls of an MCP server's tool through the server's pool, beside the client of the package mcp.

    python benchmarks/mcp.py --calls 400 --rounds 7

Both have one open session. The MCP server runs in a process of its own. Rounds take turns:
a busy host is faster now and slower then.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

Call = Callable[[], Awaitable[Any]]
KINDS = ("2026-07-28", "sessions", "sse")
"""Protocols: the newest, which has no sessions; streamable HTTP before it; and SSE."""


def serve(kind: str) -> None:
    """An MCP server with one tool; prints its port. `GET /counts`: connections and sessions of its calls."""
    sys.path = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]
    import json
    import socket

    import uvicorn
    from mcp.server.mcpserver import MCPServer

    server = MCPServer("bench", log_level="CRITICAL")

    @server.tool(structured_output=False)
    async def echo(text: str) -> str:
        return text

    app = server.sse_app() if kind == "sse" else server.streamable_http_app()
    calls: list[tuple[int, str | None]] = []

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if scope["path"] == "/counts":
            body = json.dumps({"calls": len(calls), "connections": len({port for port, _ in calls}),
                               "sessions": len({session for _, session in calls})}).encode()  # fmt: skip
            calls.clear()
        elif kind == "sessions" and headers.get(b"mcp-method") == b"server/discover":
            body = b""
        else:
            method = headers.get(b"mcp-method", b"tools/call")
            if scope["method"] == "POST" and method == b"tools/call":
                session = headers.get(b"mcp-session-id", scope["query_string"]).decode()
                calls.append((scope["client"][1], session))
            await app(scope, receive, send)
            return
        status = 200 if body else 400
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(counting, interface="asgi3", log_level="critical")).run([listener])


@asynccontextmanager
async def pooled(url: str) -> AsyncIterator[Call]:
    """What agents call: arguments are checked, results are turned into the API's."""
    from stack.context import open_stack
    from stack.schemas.tools import RegisterToolGroupRequest
    from stack.settings import Settings
    from stack.tools.base import CallContext

    with tempfile.TemporaryDirectory() as home:
        async with open_stack(Settings(home=Path(home), egress_allow="127.0.0.1")) as stack:
            body: Any = {"toolgroup_id": "g", "provider_id": "model-context-protocol"}
            request = RegisterToolGroupRequest(**body, mcp_endpoint={"uri": url})
            await stack.tools.groups.register(request, {})
            (tool,) = await stack.tools.bind(["g"], {})
            context = CallContext()

            async def call() -> None:
                result = await stack.tools.call(tool, {"text": "hello"}, context)
                assert result.error_message is None, result

            yield call


@asynccontextmanager
async def plain(url: str, kind: str) -> AsyncIterator[Call]:
    """The package's client with one open session."""
    client_of, sse_client = (
        importlib.import_module("mcp.client").Client,
        importlib.import_module("mcp.client.sse").sse_client,
    )
    opened = client_of(sse_client(url), mode="legacy") if kind == "sse" else client_of(url)
    async with opened as client:

        async def call() -> None:
            result = await client.call_tool("echo", {"text": "hello"})
            assert not result.is_error

        yield call


async def rate(call: Call, calls: int, at_once: int) -> tuple[float, float]:
    """Calls in a second, and this process's CPU time of each, ms, which other processes hardly change."""
    left = calls

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    started, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return calls / (time.perf_counter() - started), (time.process_time() - used) / calls * 1e3


async def counts(url: str) -> str:
    import httpx

    async with httpx.AsyncClient(trust_env=False) as client:
        found = (await client.get(url.rpartition("/")[0] + "/counts")).json()
    return f"{found['calls']} calls over {found['connections']} connections, {found['sessions']} sessions"


def _median(found: list[tuple[float, float]]) -> str:
    rates, times = zip(*found, strict=True)
    return f"{statistics.median(rates):.0f} calls/s ({statistics.median(times):.1f} ms of CPU)"


async def measure(kind: str, calls: int, rounds: int) -> None:
    program = [sys.executable, __file__, "--serve", kind]
    server = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
    try:
        assert server.stdout is not None
        port = int(await server.stdout.readline())
        url = f"http://127.0.0.1:{port}/{'sse' if kind == 'sse' else 'mcp'}"
        async with pooled(url) as ours, plain(url, kind) as theirs:
            print(f"\n## {kind}, load {os.getloadavg()[0]:.1f}")
            await rate(ours, 20, 1)
            await rate(theirs, 20, 1)
            for name, call in (("pool", ours), ("mcp client", theirs)):
                await counts(url)
                await rate(call, 50, 1)
                print(f"{name:10} in sequence: {await counts(url)}")
            for at_once in (1, 16):
                pool, client = [], []
                for _ in range(rounds):
                    pool.append(await rate(ours, calls, at_once))
                    client.append(await rate(theirs, calls, at_once))
                ratios = [a / b for (a, _), (b, _) in zip(pool, client, strict=True)]
                print(
                    f"{at_once:2} at once: pool {_median(pool)}, mcp client {_median(client)}; "
                    f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                )
    finally:
        server.kill()
        await server.wait()


def main() -> None:
    # This file has the name of the package that it imports.
    sys.path = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=400, help="in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
    else:
        for kind in args.kinds:
            asyncio.run(measure(kind, args.calls, args.rounds))


main()
