"""The tools of one turn: those that the server runs and those that the client does."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stack.errors import BadRequest
from stack.schemas.agents import Attachment, ToolResponse
from stack.schemas.common import URL, JsonObject, well_formed
from stack.schemas.content import ImageContentItem, InterleavedContentItem, TextContentItem, ToolCall
from stack.schemas.messages import ToolConfig, ToolDefinition, ToolParamDefinition
from stack.schemas.tools import ToolDef, ToolInvocationResult
from stack.tools.base import BoundTool, CallContext
from stack.tools.tools import Tools

log = logging.getLogger(__name__)

SEARCH_GROUP, CODE_GROUP = "builtin::rag", "builtin::code_interpreter"
CALL_TIMEOUT_S = 120.0  # beyond a tool's own limits, which are shorter
MAX_RESPONSE_CHARS = 100_000
MAX_METADATA_CHARS = 64 << 10
MAX_ATTACHMENTS = 16  # of one call, and of a turn
MAX_ATTACHMENT_CHARS = 16 << 20  # of a turn


@dataclass(frozen=True, slots=True)
class Named:
    """A file that a tool gave back."""

    name: str
    mime_type: str
    uri: str  # data:…


@dataclass(frozen=True, slots=True)
class Called:
    response: ToolResponse
    attachments: list[Attachment] = field(default_factory=list)
    files: list[Named] = field(default_factory=list)


class Toolbox:
    """Client tools go before server tools of the same name."""

    def __init__(self, tools: Tools, bound: Sequence[BoundTool], client_tools: Sequence[ToolDef]) -> None:
        self._tools = tools
        self._client = {tool.name: tool for tool in client_tools}
        self._server: dict[str, BoundTool] = {}
        for tool in bound:
            if tool.definition.name not in self._client:
                self._server.setdefault(tool.definition.name, tool)

    def definitions(self) -> list[ToolDefinition]:
        """As models are told of them."""
        tools = [tool.definition for tool in self._server.values()]
        return [_definition(tool) for tool in [*self._client.values(), *tools]]

    def has_group(self, toolgroup_id: str) -> bool:
        return any(tool.group.identifier == toolgroup_id for tool in self._server.values())

    def is_in_group(self, name: str, toolgroup_id: str) -> bool:
        return (tool := self._server.get(name)) is not None and tool.group.identifier == toolgroup_id

    def is_client(self, name: str) -> bool:
        return name in self._client

    def check_choice(self, config: ToolConfig | None) -> None:
        """Raises BadRequest for a tool_choice that names a tool which is not there."""
        choice = config.tool_choice if config is not None else "auto"
        names = [*self._client, *self._server]
        if choice in ("auto", "none") or choice in names or (choice == "required" and names):
            return
        raise BadRequest(
            f"tool_choice is {choice!r}, but the tools of this turn are: {', '.join(names) or 'none'}"
        )

    async def call(
        self,
        call: ToolCall,
        provider_data: Mapping[str, Any],
        files: Mapping[str, bytes],
        memory: str | None,
    ) -> Called:
        """Never raises a StackError: the response says what went wrong.

        `files` are for code, `memory` is a vector database to search beside those that the agent names.
        """
        tool = self._server.get(call.tool_name)
        if tool is None:
            names = ", ".join([*self._server, *self._client])
            return _failed(call, f"there is no tool {call.tool_name!r}; there are: {names or 'none'}")
        args = tool.args
        if memory is not None and tool.group.identifier == SEARCH_GROUP:
            args = with_memory(args, memory)
        context = CallContext(provider_data=provider_data, args=args, files=files)
        try:
            given = arguments(call)
        except ValueError:
            return _failed(call, "its arguments are not a JSON object")
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S) as limit:
                return _called(call, await self._tools.call(tool, given, context))
        except Exception:  # a tool's edge: whatever it does, the turn goes on
            if limit.expired():
                return _failed(call, f"it took longer than {CALL_TIMEOUT_S:g} s")
            log.exception("tool %s failed", call.tool_name)
            return _failed(call, "the tool failed")


def kept(attachments: Sequence[Attachment]) -> list[Attachment] | None:
    """A turn's last attachments, as many as it may have."""
    found: list[Attachment] = []
    size = 0
    for attachment in reversed(attachments):
        size += len(attachment.model_dump_json())
        if len(found) == MAX_ATTACHMENTS or size > MAX_ATTACHMENT_CHARS:
            break
        found.insert(0, attachment)
    return found or None


def arguments(call: ToolCall) -> JsonObject:
    """Of a call, however it carries them. Raises ValueError."""
    written = call.arguments_json or call.arguments
    try:
        found: Any = json.loads(written) if isinstance(written, str) else written
    except RecursionError as error:
        raise ValueError("they are nested too deep") from error
    if not isinstance(found, dict):
        raise ValueError("arguments are an object")
    return dict(found)


def call_key(call: ToolCall) -> str:
    """The same for calls of the same tool with the same arguments."""
    try:
        return json.dumps([call.tool_name, arguments(call)], sort_keys=True)
    except (ValueError, RecursionError):
        return f"{call.tool_name} {call.arguments_json or call.arguments}"


def with_memory(args: JsonObject, memory: str) -> JsonObject:
    named = args.get("vector_db_ids", [])
    return args | {"vector_db_ids": [*(named if isinstance(named, list) else [named]), memory]}


def _definition(tool: ToolDef) -> ToolDefinition:
    parameters = {
        parameter.name: ToolParamDefinition(
            param_type=parameter.parameter_type,
            description=parameter.description,
            required=parameter.required,
            default=parameter.default,
        )
        for parameter in tool.parameters or []
    }
    return ToolDefinition(tool_name=tool.name, description=tool.description, parameters=parameters)


def _failed(call: ToolCall, why: str) -> Called:
    return Called(ToolResponse(call_id=call.call_id, tool_name=call.tool_name, content=f"Error: {why}"))


def _called(call: ToolCall, result: ToolInvocationResult) -> Called:
    metadata = dict(well_formed(result.metadata or {}))
    files = list(_files(metadata.pop("attachments", None)))
    text, images = _text_and_images(result)
    if result.error_message is not None:
        metadata |= {"error_message": result.error_message, "error_code": result.error_code}
        text = f"Error: {result.error_message}"
    if len(json.dumps(metadata)) > MAX_METADATA_CHARS:
        metadata = {"note": "the tool's metadata was too large to keep"}
    response = ToolResponse(
        call_id=call.call_id,
        tool_name=call.tool_name,
        content=_bounded(well_formed(text)),
        metadata=metadata or None,
    )
    named = [
        Attachment(content=URL(uri=file.uri), mime_type=file.mime_type)
        for file in files
        if not (images and file.mime_type in ("image/png", "image/jpeg"))  # these are the images
    ]
    pictures = [Attachment(content=image, mime_type=_mime_type(image)) for image in images]
    return Called(response, [*pictures, *named][:MAX_ATTACHMENTS], files)


def _text_and_images(result: ToolInvocationResult) -> tuple[str, list[ImageContentItem]]:
    """Models read text from tools; images go to the user as attachments."""
    content = result.content
    if content is None or isinstance(content, str):
        return content or "", []
    items: list[InterleavedContentItem] = content if isinstance(content, list) else [content]
    texts = [item.text for item in items if isinstance(item, TextContentItem)]
    images = [item for item in items if isinstance(item, ImageContentItem)]
    if images:
        texts.append(f"[{len(images)} image{'s' if len(images) > 1 else ''} shown to the user]")
    return "\n".join(texts), images


def _files(attachments: Any) -> Iterable[Named]:
    for item in attachments if isinstance(attachments, list) else []:
        yield Named(item["name"], item["mime_type"], item["content"]["uri"])


def _mime_type(image: ImageContentItem) -> str:
    data, url = image.image.data or "", image.image.url
    if url is not None and url.uri.startswith("data:"):
        return url.uri[5:].partition(";")[0]
    return "image/jpeg" if data.startswith("/9j/") else "image/png"


def _bounded(text: str) -> str:
    if len(text) <= MAX_RESPONSE_CHARS:
        return text
    return f"{text[:MAX_RESPONSE_CHARS]}\n… [cut: the tool's response has {len(text)} characters]"
