"""ToolGroups: register, list, get and unregister groups of tools; list and get the tools."""

from __future__ import annotations

from stack.api.routing import api_router
from stack.context import CurrentStack, ProviderData
from stack.schemas.tools import (
    ListToolGroupsResponse,
    ListToolsResponse,
    RegisterToolGroupRequest,
    Tool,
    ToolGroup,
)

router = api_router("ToolGroups")


@router.get("/v1/toolgroups")
async def list_tool_groups(stack: CurrentStack, provider_data: ProviderData) -> ListToolGroupsResponse:
    """List tool groups: the built-in ones, then the others in the order of their registration."""
    return ListToolGroupsResponse(data=await stack.tools.groups.all(provider_data))


@router.post("/v1/toolgroups")
async def register_tool_group(
    request: RegisterToolGroupRequest, stack: CurrentStack, provider_data: ProviderData
) -> None:
    """Register a tool group. An MCP server is contacted, with the headers of the provider data."""
    await stack.tools.groups.register(request, provider_data)


@router.get("/v1/toolgroups/{toolgroup_id:path}")
async def get_tool_group(toolgroup_id: str, stack: CurrentStack, provider_data: ProviderData) -> ToolGroup:
    """Get a tool group."""
    return await stack.tools.groups.get(toolgroup_id, provider_data)


@router.delete("/v1/toolgroups/{toolgroup_id:path}")
async def unregister_toolgroup(toolgroup_id: str, stack: CurrentStack) -> None:
    """Unregister a tool group. A built-in one becomes what it was."""
    await stack.tools.groups.unregister(toolgroup_id)


@router.get("/v1/tools")
async def list_tools(
    stack: CurrentStack, provider_data: ProviderData, toolgroup_id: str | None = None
) -> ListToolsResponse:
    """List tools, of one group or of all; servers that do not answer are left out of the latter."""
    return ListToolsResponse(data=await stack.tools.list(toolgroup_id, provider_data))


@router.get("/v1/tools/{tool_name:path}")
async def get_tool(tool_name: str, stack: CurrentStack, provider_data: ProviderData) -> Tool:
    """Get a tool by its name, or as "group/tool"."""
    return await stack.tools.get(tool_name, provider_data)
