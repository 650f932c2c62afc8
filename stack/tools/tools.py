"""Tools: which tool groups there are, which tools they have, and calling one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from stack.engine.base import Meter
from stack.errors import BadRequest, NotFound, StackError, Unauthorized
from stack.rag.rag import Rag
from stack.sandbox.sandbox import Sandbox
from stack.schemas.agents import AgentTool
from stack.schemas.common import JsonObject
from stack.schemas.tools import Tool, ToolDef, ToolGroup, ToolInvocationResult
from stack.settings import Settings
from stack.store.database import Database
from stack.tools import metrics
from stack.tools.arguments import checked
from stack.tools.base import BoundTool, CallContext, ToolProvider
from stack.tools.code import CodeInterpreter
from stack.tools.groups import Groups
from stack.tools.lists import TURN_PATIENCE_S, NamedGroup, ToolLists, named_groups
from stack.tools.mcp.provider import PROVIDER_ID as MCP
from stack.tools.mcp.provider import Mcp
from stack.tools.rag import INSERT, RagTools
from stack.tools.search.provider import WebSearch, vendors
from stack.tools.web import Web
from stack.tools.wolfram import WolframAlpha
from stack.tracing import span

log = logging.getLogger(__name__)


class UnknownTool(NotFound):
    """`silent`: the groups that did not answer, and may have it."""

    def __init__(self, name: str, silent: Sequence[str] = ()) -> None:
        StackError.__init__(self, name, tuple(silent))

    def __str__(self) -> str:
        name, silent = self.args
        text = f"tool {name!r} is in no tool group"
        return f"{text} that answers; these do not: {', '.join(silent)}" if silent else text


class Tools:
    """`groups` has the registry; the methods here are about the groups' tools."""

    def __init__(self, groups: Groups, mcp: Mcp, meter: Meter) -> None:
        self.groups, self._mcp, self._meter = groups, mcp, meter
        self._lists = ToolLists(groups)

    async def check(
        self, toolgroups: Sequence[AgentTool], provider_data: Mapping[str, Any] | None = None
    ) -> None:
        """Raises BadRequest for a group, or a tool of a group, that is not there.

        No server is asked but one whose tool is named by itself; what it hides from callers without a key is
        not known, and passes.
        """
        data = provider_data or {}
        for named in await self._named(toolgroups, data):
            provider = self.groups.provider_of(named.group)
            provider.check_args((named.group.args or {}) | named.args)
            if named.tool is not None:
                with suppress(Unauthorized):
                    named.only(await provider.tools(named.group, data))

    async def bind(
        self, toolgroups: Sequence[AgentTool], provider_data: Mapping[str, Any]
    ) -> Sequence[BoundTool]:
        """The tools that an agent's `toolgroups` name, each once: "group", "group/tool", or with arguments.

        Of two tools with the same name the first stays. Raises BadRequest for an unknown one. The tools of a
        server that does not answer are left out.
        """
        named = await self._named(toolgroups, provider_data)
        lists = await asyncio.gather(
            *(self._lists.or_none(one.group, provider_data, TURN_PATIENCE_S) for one in named)
        )
        bound: dict[str, BoundTool] = {}
        for one, tools in zip(named, lists, strict=True):
            args = (one.group.args or {}) | one.args
            for definition in one.only(tools) if tools is not None else ():
                if definition is INSERT and one.tool is None and "documents" not in args:
                    continue  # without documents a model has no use for it
                bound.setdefault(definition.name, BoundTool(definition, one.group, args))
        return list(bound.values())

    async def call(
        self, tool: BoundTool, arguments: JsonObject, context: CallContext
    ) -> ToolInvocationResult:
        """Never raises a StackError: a call that fails or takes too long is a result that says so."""
        args = tool.args | context.args
        given = {
            parameter.name: args[parameter.name]
            for parameter in tool.definition.parameters or []
            if parameter.name in args
        }
        name, group = tool.definition.name, tool.group.identifier
        attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name}
        meter, started = self._meter.labelled(toolgroup_id=group), time.monotonic()
        try:
            with span(f"execute_tool {name}", attributes | {"stack.toolgroup_id": group}):
                provider = self.groups.provider_of(tool.group)
                read = checked(tool.definition, arguments | given, open_ended=_takes_more(tool))
                return await provider.invoke(tool.group, name, read, replace(context, args=args))
        except StackError as error:
            log.info("tool %s of %s: %s", name, group, error.title)
            meter.count(metrics.FAILED_CALLS)
            return _failed(error)
        finally:
            meter.count(metrics.CALLS)
            meter.observe(metrics.CALL_SECONDS, time.monotonic() - started)

    async def invoke(
        self, tool_name: str, kwargs: JsonObject, provider_data: Mapping[str, Any]
    ) -> ToolInvocationResult:
        """Call "tool" or "group/tool"; raises UnknownTool. `kwargs` may have a group's `args`, too."""
        try:
            group, definition = await self._find(tool_name, provider_data)
        except (BadRequest, NotFound):
            raise
        except StackError as error:
            return _failed(error)
        parameters = {parameter.name for parameter in definition.parameters or []}
        extras = self.groups.provider_of(group).extras - parameters
        args = (group.args or {}) | {name: value for name, value in kwargs.items() if name in extras}
        arguments = {name: value for name, value in kwargs.items() if name not in extras}
        # What the caller writes goes before what the group was registered with.
        args = {name: value for name, value in args.items() if name not in arguments}
        context = CallContext(provider_data=provider_data)
        return await self.call(BoundTool(definition, group, args), arguments, context)

    async def list(self, toolgroup_id: str | None, provider_data: Mapping[str, Any]) -> list[Tool]:
        """Of an unknown group there are none. Without a group: of all that answer."""
        try:
            stream = self.stream(toolgroup_id, provider_data)
            return [_tool(group, definition) async for group, definition in stream]
        except NotFound:
            return []

    async def get(self, tool_name: str, provider_data: Mapping[str, Any]) -> Tool:
        """Raises UnknownTool."""
        return _tool(*await self._find(tool_name, provider_data))

    async def definitions(
        self, toolgroup_id: str | None, endpoint: str | None, provider_data: Mapping[str, Any]
    ) -> AsyncIterator[ToolDef]:
        """Of a group, of a server that need not be registered, or of all groups that answer, as they come."""
        if endpoint is None:
            async with aclosing(self.stream(toolgroup_id, provider_data)) as stream:
                async for _, definition in stream:
                    yield definition
            return
        if toolgroup_id is not None:
            group = await self.groups.get(toolgroup_id, provider_data)
            if group.mcp_endpoint is None or group.mcp_endpoint.uri != endpoint:
                raise BadRequest(f"tool group {toolgroup_id!r} is not at that mcp_endpoint: give one only")
        for definition in await self._mcp.tools_at(endpoint, provider_data):
            yield definition

    async def stream(
        self, toolgroup_id: str | None, provider_data: Mapping[str, Any]
    ) -> AsyncGenerator[tuple[ToolGroup, ToolDef]]:
        """Raises NotFound, and of a single group what its server does wrong."""
        if toolgroup_id is None:
            async with aclosing(self._lists.each(provider_data)) as lists:
                async for group, tools in lists:
                    for definition in tools or ():
                        yield group, definition
            return
        group = await self.groups.get(toolgroup_id, provider_data)
        for definition in await self.groups.provider_of(group).tools(group, provider_data):
            yield group, definition

    async def _find(self, tool_name: str, provider_data: Mapping[str, Any]) -> tuple[ToolGroup, ToolDef]:
        """By "group/tool" where there is such a group, else the first tool of that name."""
        groups = await self.groups.all(provider_data)
        for group in groups:
            if tool_name.startswith(f"{group.identifier}/"):
                rest = tool_name.removeprefix(f"{group.identifier}/")
                for definition in await self.groups.provider_of(group).tools(group, provider_data):
                    if definition.name == rest:
                        return group, definition
        silent: list[str] = []
        async with aclosing(self._lists.each(provider_data, groups)) as lists:
            async for group, tools in lists:
                if tools is None:
                    silent.append(group.identifier)
                for definition in tools or ():
                    if definition.name == tool_name:
                        return group, definition
        raise UnknownTool(tool_name, silent)

    async def _named(
        self, toolgroups: Sequence[AgentTool], provider_data: Mapping[str, Any]
    ) -> Sequence[NamedGroup]:
        groups = {group.identifier: group for group in await self.groups.all(provider_data)}
        return named_groups(toolgroups, groups)


def _tool(group: ToolGroup, definition: ToolDef) -> Tool:
    return Tool(
        identifier=definition.name,
        provider_resource_id=definition.name,
        provider_id=group.provider_id,
        toolgroup_id=group.identifier,
        tool_host="model_context_protocol" if group.provider_id == MCP else "distribution",
        description=definition.description or "",
        parameters=definition.parameters or [],
        metadata=definition.metadata,
    )


def _failed(error: StackError) -> ToolInvocationResult:
    return ToolInvocationResult(error_message=str(error), error_code=error.status)


def _takes_more(tool: BoundTool) -> bool:
    """Whether a server's tool takes arguments that its list of tools does not name."""
    if tool.group.provider_id != MCP:
        return False
    schema = (tool.definition.metadata or {}).get("input_schema")
    if not isinstance(schema, dict):
        return False
    return bool(schema.get("additionalProperties", "properties" not in schema))


@asynccontextmanager
async def open_tools(
    settings: Settings, database: Database, rag: Rag, sandbox: Sandbox, meter: Meter
) -> AsyncGenerator[Tools]:
    for name in ("httpx", "httpx2", "mcp", "client"):
        # They would write URLs and answers, which have keys in them. "client" is the package mcp's, too.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    web, mcp = Web(settings), Mcp(settings)
    providers: dict[str, ToolProvider] = {
        "rag-runtime": RagTools(rag),
        **{vendor.provider_id: WebSearch(vendor, settings, web) for vendor in vendors()},
        "wolfram-alpha": WolframAlpha(settings, web),
        "code-interpreter": CodeInterpreter(sandbox),
        MCP: mcp,
    }
    try:
        yield Tools(Groups(database, providers), mcp, meter)
    finally:
        await mcp.close()
        await web.close()
