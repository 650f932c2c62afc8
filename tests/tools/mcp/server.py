"""An MCP server with tools of many kinds, made with the package mcp."""

from __future__ import annotations

import asyncio
import base64
import threading
from typing import Any, Literal

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import (
    AudioContent,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

RELEASED = threading.Event()
"""Ends what `echo` was asked to hold: the server may run in a thread of its own."""

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()


class Person(BaseModel):
    name: str
    friends: list[Person] = []


def mcp_server() -> MCPServer:
    server = MCPServer("farm", log_level="CRITICAL")

    @server.tool()
    def add(a: int, b: int = 1) -> int:
        """Add two numbers."""
        return a + b

    @server.tool(structured_output=False)
    async def echo(text: str, seconds: float = 0.0) -> str:
        await asyncio.sleep(seconds)
        while text == "held" and not RELEASED.is_set():  # noqa: ASYNC110  # set by another thread
            await asyncio.sleep(0.01)
        return text

    @server.tool(structured_output=False)
    def greet(person: Person, mood: Literal["warm", "cold"] = "warm", tags: list[str] | None = None) -> str:
        return f"{mood} {person.name} {len(person.friends)} {tags}"

    @server.tool(structured_output=False)
    def fail(text: str) -> str:
        raise ToolError(text)

    @server.tool(structured_output=False)
    def large(size: int) -> str:
        return "x" * size

    @server.tool(structured_output=False)
    def mixed() -> list[Any]:
        return [
            TextContent(type="text", text="a picture:"),
            ImageContent(type="image", data=PNG, mime_type="image/png"),
            AudioContent(type="audio", data=PNG, mime_type="audio/wav"),
            ResourceLink(type="resource_link", name="barn", uri="https://example.org/barn"),
            EmbeddedResource(
                type="resource",
                resource=TextResourceContents(uri="file:///a.txt", text="of a file", mime_type="text/plain"),
            ),
        ]

    @server.tool(structured_output=False)
    async def grow(ctx: Context) -> str:
        """Adds a tool, and says so."""

        def grown() -> str:
            return "grown"

        server.add_tool(grown, name="grown", structured_output=False)
        await ctx.notify_tools_changed()  # to those who listen, and as older protocols have it
        await ctx.session.send_tool_list_changed()
        return "done"

    return server


def before_2026(app: ASGIApp) -> ASGIApp:
    """The server as one without `server/discover`: it opens sessions, and answers 404 to unknown ones."""

    async def older(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", []))
        if headers.get(b"mcp-method") == b"server/discover":
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b"Bad Request: Missing session ID"})
            return
        await app(scope, receive, send)

    return older
