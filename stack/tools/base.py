"""What answers for the tools of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from stack.errors import BadRequest
from stack.schemas.common import JsonObject
from stack.schemas.tools import ToolDef, ToolGroup, ToolInvocationResult, ToolParameter


@dataclass(frozen=True, slots=True)
class CallContext:
    """What a call has beside its arguments."""

    provider_data: Mapping[str, Any] = field(default_factory=dict)  # the request's own keys and headers
    args: JsonObject = field(default_factory=dict)  # the group's, with an agent's in their place
    files: Mapping[str, bytes] = field(default_factory=dict)  # by name: what the code interpreter may read


class ToolProvider(Protocol):
    """Tools of one kind. A call that fails is a result with `error_message`, or a StackError."""

    kind: str  # which built-in group it may answer for; "mcp" for none

    extras: frozenset[str]  # beyond a tool's parameters: what a group's `args` and a caller's kwargs may give

    def check_args(self, args: JsonObject) -> None:
        """Raises BadRequest for a group's arguments that no call could work with."""

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


def text_parameter(name: str, description: str) -> ToolParameter:
    return ToolParameter(name=name, parameter_type="string", description=description)


def key_of(provider_data: Mapping[str, Any], name: str) -> str | None:
    """A key in the request's provider data. Raises BadRequest when it is no string."""
    key = provider_data.get(name)
    if key is not None and not isinstance(key, str):
        raise BadRequest(f"{name} in X-LlamaStack-Provider-Data is not a string")
    return key or None
