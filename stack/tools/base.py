"""What answers for the tools of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from stack.schemas.common import JsonObject
from stack.schemas.tools import ToolDef, ToolGroup, ToolInvocationResult


@dataclass(frozen=True, slots=True)
class CallContext:
    """What a call has beside its arguments."""

    provider_data: Mapping[str, Any] = field(default_factory=dict)  # the request's own keys and headers
    args: JsonObject = field(default_factory=dict)  # the group's, with an agent's in their place
    files: Mapping[str, bytes] = field(default_factory=dict)  # by name: what the code interpreter may read


class ToolProvider(Protocol):
    """Tools of one kind. A call that fails is a result with `error_message`, or a StackError."""

    async def tools(self, group: ToolGroup, provider_data: Mapping[str, Any]) -> Sequence[ToolDef]: ...

    async def invoke(
        self, group: ToolGroup, tool_name: str, arguments: JsonObject, context: CallContext
    ) -> ToolInvocationResult: ...


@dataclass(frozen=True, slots=True)
class BoundTool:
    """A tool of a group, with the arguments that an agent's configuration gives to the group."""

    definition: ToolDef
    group: ToolGroup
    args: JsonObject
