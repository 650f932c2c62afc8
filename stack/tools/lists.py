"""Lists of tools of several groups, some of whose servers may not answer; and what an agent names of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stack.errors import BadRequest, StackError, Timeout
from stack.schemas.agents import AgentTool
from stack.schemas.common import JsonObject
from stack.schemas.tools import ToolDef, ToolGroup
from stack.tools.groups import Groups

log = logging.getLogger(__name__)

PATIENCE_S = 3.0  # for one of all groups, which somebody looks through
TURN_PATIENCE_S = 10.0  # for one that an agent names
SILENT_FOR_S = 30.0  # one that did not answer is left out at once for so long


class ToolLists:
    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._silent: dict[tuple[str, float], float] = {}  # a group's id and the patience -> until when

    async def each(
        self, provider_data: Mapping[str, Any], groups: Sequence[ToolGroup] | None = None
    ) -> AsyncGenerator[tuple[ToolGroup, Sequence[ToolDef] | None]]:
        """All groups in their order, with None for one that does not answer. All are asked at once."""
        groups = await self._groups.all(provider_data) if groups is None else groups
        tasks = [asyncio.create_task(self.or_none(group, provider_data, PATIENCE_S)) for group in groups]
        try:
            for group, task in zip(groups, tasks, strict=True):
                yield group, await task
        finally:
            for task in tasks:
                task.cancel()

    async def or_none(
        self, group: ToolGroup, provider_data: Mapping[str, Any], patience_s: float
    ) -> Sequence[ToolDef] | None:
        """A group's tools; None where its server does not answer soon, or wants a key."""
        key = (group.identifier, patience_s)
        if time.monotonic() < self._silent.get(key, 0.0):
            return None
        try:
            async with asyncio.timeout(patience_s):
                return await self._groups.provider_of(group).tools(group, provider_data)
        except (TimeoutError, Timeout):
            log.info("the tools of %s are left out: no answer in time", group.identifier)
            self._note(key)
        except StackError as error:
            log.info("the tools of %s are left out: %s", group.identifier, error.title)
        return None

    def _note(self, key: tuple[str, float]) -> None:
        now = time.monotonic()
        self._silent = {other: until for other, until in self._silent.items() if until > now}
        self._silent[key] = now + SILENT_FOR_S


@dataclass(frozen=True, slots=True)
class NamedGroup:
    """What an agent's `toolgroups` name: a group, or one tool of it."""

    group: ToolGroup
    tool: str | None
    args: JsonObject

    def only(self, tools: Sequence[ToolDef]) -> Sequence[ToolDef]:
        """What is named of the group's tools. Raises BadRequest if there is no such tool."""
        if self.tool is None:
            return tools
        found = [definition for definition in tools if definition.name == self.tool]
        if not found:
            names = ", ".join(definition.name for definition in tools[:20])
            raise BadRequest(
                f"toolgroups: {self.group.identifier!r} has no tool {self.tool!r}; it has: {names}"
            )
        return found


def named_groups(toolgroups: Sequence[AgentTool], groups: Mapping[str, ToolGroup]) -> list[NamedGroup]:
    """Raises BadRequest for a group that is not there."""
    named = []
    for one in toolgroups:
        name, args = (one, {}) if isinstance(one, str) else (one.name, one.args)
        group_id, tool = _split(name, groups)
        if group_id not in groups:
            raise BadRequest(
                f"toolgroups: {name[:200]!r} is not a tool group; GET /v1/toolgroups lists what there is"
            )
        named.append(NamedGroup(groups[group_id], tool, args))
    return named


def _split(name: str, groups: Mapping[str, ToolGroup]) -> tuple[str, str | None]:
    """Ids of groups and names of tools may both have a slash: the longest id that is there."""
    if name in groups:
        return name, None
    ids = [group_id for group_id in groups if name.startswith(f"{group_id}/")]
    if not ids:
        return name, None
    group_id = max(ids, key=len)
    return group_id, name.removeprefix(f"{group_id}/")
