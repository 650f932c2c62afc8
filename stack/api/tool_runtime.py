"""ToolRuntime: call a tool, and list tools as they are now."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated

from fastapi import Depends, Request, Response
from pydantic import ValidationError
from starlette.responses import StreamingResponse

from stack.api.routing import api_router
from stack.context import CurrentStack, ProviderData
from stack.errors import BadRequest
from stack.schemas.common import URL
from stack.schemas.tools import InvokeToolRequest, ToolDef, ToolInvocationResult

router = api_router("ToolRuntime")

JSON_LINES = "application/jsonl"

_LIST_TOOLS = {
    "parameters": [
        {
            "name": "mcp_endpoint",
            "in": "query",
            "required": False,
            "schema": {"$ref": "#/components/schemas/URL"},
        }
    ],
    "responses": {
        "200": {"content": {JSON_LINES: {"schema": {"$ref": "#/components/schemas/ToolDef"}}}},
    },
}


async def _mcp_endpoint(request: Request) -> str | None:
    """The spec does not say how an object stands in a query: as clients write it, as JSON, or as its URL."""
    query = request.query_params
    given = query.get("mcp_endpoint[uri]", query.get("mcp_endpoint"))
    if given is None or not given.lstrip().startswith("{"):
        return given
    try:
        return URL.model_validate_json(given).uri
    except ValidationError as error:
        raise BadRequest('mcp_endpoint is a URL: write mcp_endpoint={"uri": "https://…"}') from error


@router.post("/v1/tool-runtime/invoke")
async def invoke_tool(
    request: InvokeToolRequest, stack: CurrentStack, provider_data: ProviderData
) -> ToolInvocationResult:
    """Run a tool with the given arguments. A tool that fails is answered with `error_message`."""
    return await stack.tools.invoke(request.tool_name, request.kwargs, provider_data)


@router.get("/v1/tool-runtime/list-tools", response_class=StreamingResponse, openapi_extra=_LIST_TOOLS)
async def list_runtime_tools(
    stack: CurrentStack,
    provider_data: ProviderData,
    mcp_endpoint: Annotated[str | None, Depends(_mcp_endpoint)],
    tool_group_id: str | None = None,
) -> Response:
    """The tools of a group, of an MCP server, or of all groups that answer: one in each line."""
    tools = stack.tools.definitions(tool_group_id, mcp_endpoint, provider_data)
    first = await anext(tools, None)  # an error before it keeps its status
    return StreamingResponse(_lines(first, tools), media_type=JSON_LINES)


async def _lines(first: ToolDef | None, tools: AsyncIterator[ToolDef]) -> AsyncGenerator[str]:
    if first is None:
        return
    yield first.model_dump_json() + "\n"
    async for tool in tools:
        yield tool.model_dump_json() + "\n"
