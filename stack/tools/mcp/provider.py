"""The provider `model-context-protocol`: tools of the MCP server at a group's endpoint."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import httpx

from stack.egress import check_url
from stack.errors import BadRequest, StackError, Unauthorized
from stack.schemas.common import JsonObject
from stack.schemas.tools import ToolDef, ToolGroup, ToolInvocationResult
from stack.settings import Settings
from stack.tools.base import CallContext
from stack.tools.mcp.attempt import named
from stack.tools.mcp.headers import headers_for

if TYPE_CHECKING:
    from stack.tools.mcp.pool import Pool

PROVIDER_ID = "model-context-protocol"
CALL_S = 60.0
MAX_CALL_S = 600.0


class Mcp:
    """Opens nothing before it is first needed: many servers never call a tool of another one."""

    kind = "mcp"
    extras = frozenset({"timeout_s"})

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool: Pool | None = None

    def check_args(self, args: JsonObject) -> None:
        _timeout_s(args)

    async def connect(self, endpoint: str, provider_data: Mapping[str, Any]) -> None:
        """Raises BadRequest where no MCP server is. One that asks for a key is one."""
        check_endpoint(endpoint)
        pool = await self._opened()
        try:
            await pool.connect(endpoint, headers_for(endpoint, provider_data))
        except Unauthorized:
            return
        except StackError as error:
            raise BadRequest(f"no MCP server was found: {error}") from error

    async def tools(self, group: ToolGroup, provider_data: Mapping[str, Any]) -> Sequence[ToolDef]:
        return await self.tools_at(_endpoint(group), provider_data)

    async def tools_at(self, endpoint: str, provider_data: Mapping[str, Any]) -> Sequence[ToolDef]:
        check_endpoint(endpoint)
        headers = headers_for(endpoint, provider_data)
        return await (await self._opened()).tools(endpoint, headers)

    async def invoke(
        self, group: ToolGroup, tool_name: str, arguments: JsonObject, context: CallContext
    ) -> ToolInvocationResult:
        from mcp.shared.exceptions import MCPError

        from stack.tools.mcp.results import MAX_ERROR_CHARS, result_of

        endpoint, timeout_s = _endpoint(group), _timeout_s(context.args)
        headers = headers_for(endpoint, context.provider_data)
        pool = await self._opened()
        try:
            result = await pool.call(endpoint, headers, tool_name, arguments, timeout_s)
        except MCPError as error:
            return ToolInvocationResult(error_message=error.message[:MAX_ERROR_CHARS], error_code=error.code)
        return result_of(result)

    async def _opened(self) -> Pool:
        """The package mcp takes most of a second to import: in a thread."""
        if self._pool is None:
            module = await asyncio.to_thread(importlib.import_module, "stack.tools.mcp.pool")
            if self._pool is None:
                self._pool = module.Pool(self._settings.egress_allowed)
        return self._pool

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()


def check_endpoint(endpoint: str) -> None:
    try:
        url = httpx.URL(endpoint)
    except (httpx.InvalidURL, ValueError) as error:
        raise BadRequest(f"mcp_endpoint {named(endpoint)} is not a URL: {error}") from error
    check_url(url)


def _endpoint(group: ToolGroup) -> str:
    assert group.mcp_endpoint is not None  # of a group of this provider
    return group.mcp_endpoint.uri


def _timeout_s(args: JsonObject) -> float:
    value = args.get("timeout_s", CALL_S)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_CALL_S:
        raise BadRequest(
            f"args.timeout_s is a number of seconds up to {MAX_CALL_S:g}, not {json.dumps(value)[:40]}"
        )
    return float(value)
