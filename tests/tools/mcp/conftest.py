from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from stack.tools.mcp.pool import Pool
from tests.tools.mcp.server import before_2026, mcp_server
from tests.tools.servers import Served, served

APPS: dict[str, Callable[[], Any]] = {
    "newest": lambda: mcp_server().streamable_http_app(),
    "before 2026": lambda: before_2026(mcp_server().streamable_http_app()),
    "json": lambda: before_2026(mcp_server().streamable_http_app(json_response=True)),
    "stateless": lambda: before_2026(mcp_server().streamable_http_app(stateless_http=True)),
    "sse": lambda: mcp_server().sse_app(),
}


@dataclass
class Farm:
    """A served MCP server and a pool that may reach it."""

    server: Served
    pool: Pool
    url: str

    async def call(self, tool: str, timeout_s: float = 10, headers: Any = None, **arguments: Any) -> Any:
        return await self.pool.call(self.url, headers or {}, tool, arguments, timeout_s)

    async def text(self, tool: str, **arguments: Any) -> str:
        (block,) = (await self.call(tool, **arguments)).content
        return str(block.text)


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    """May reach loopback, which no other address of a machine is."""
    opened = Pool({"127.0.0.1"})
    yield opened
    await opened.close()


@pytest.fixture(params=APPS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(kind: str) -> Iterator[Served]:
    with served(APPS[kind]()) as server:
        yield server


@pytest.fixture
def farm(kind: str, server: Served, pool: Pool) -> Farm:
    return Farm(server, pool, f"{server.url}{'/sse' if kind == 'sse' else '/mcp'}")
