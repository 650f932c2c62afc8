"""Tools as a server lists them -> ToolDefs that models can be told of."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence

from mcp_types import Tool

from stack.schemas.common import JsonObject
from stack.schemas.tools import ToolDef
from stack.tools.mcp.attempt import named
from stack.tools.mcp.parameters import parameters_of

log = logging.getLogger(__name__)

MAX_TOOLS = 1_000  # of a server
MAX_PAGES = 50
MAX_DESCRIPTION_CHARS = 8_000
MAX_SCHEMA_CHARS = 64 << 10

# As stack.engine.tool_calls.formats takes them, which an API replica cannot import.
MAX_PARAMETERS = 64
MAX_NAME = 128
_NAME = re.compile(r"[^\s\"'\\<>()\[\]{}=,]+")


def definitions(tools: Sequence[Tool], endpoint: str) -> list[ToolDef]:
    """Each once. What a model could not call is left out, with a line in the log."""
    found: dict[str, ToolDef] = {}
    for tool in tools[:MAX_TOOLS]:
        try:
            definition = _definition(tool, endpoint)
        except ValueError:  # NaN, or an integer of thousands of digits
            log.warning("a tool of %s is left out: its schema has a number that is none", named(endpoint))
            continue
        if (reason := _refusal(definition)) is not None:
            log.warning("a tool of %s is left out: %s", named(endpoint), reason)
        else:
            found.setdefault(definition.name, definition)
    if len(tools) > MAX_TOOLS:
        log.warning("%s has more than %d tools: the others are left out", named(endpoint), MAX_TOOLS)
    return list(found.values())


def _definition(tool: Tool, endpoint: str) -> ToolDef:
    metadata: JsonObject = {"endpoint": endpoint}
    if len(json.dumps(tool.input_schema, allow_nan=False)) <= MAX_SCHEMA_CHARS:
        metadata["input_schema"] = tool.input_schema
    return ToolDef.model_construct(
        name=tool.name,
        description=(tool.description or tool.title or "")[:MAX_DESCRIPTION_CHARS],
        parameters=parameters_of(tool.input_schema),
        metadata=metadata,
    )


def _refusal(definition: ToolDef) -> str | None:
    parameters = definition.parameters or []
    if len(parameters) > MAX_PARAMETERS:
        return f"{definition.name[:MAX_NAME]!r} has {len(parameters)} parameters, more than {MAX_PARAMETERS}"
    for name in (definition.name, *(parameter.name for parameter in parameters)):
        if not _NAME.fullmatch(name) or len(name) > MAX_NAME or not name.isprintable():
            return f"the name {name[:MAX_NAME]!r} has a space, quote, bracket, comma or =, or is too long"
    return None
