"""A model that answers at once what the user's message tells it to, and tools that need no server.

The user's message is a script: a list of answers, each a list of texts, seconds of waiting, and tool calls.
It is asked for by the place in the conversation, so that any process can go on where another stopped.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from stack.engine.base import Priority
from stack.errors import BadRequest, ContextTooLong
from stack.schemas.common import JsonObject
from stack.schemas.content import ImageContentItem, ImageSource, TextContentItem, ToolCall
from stack.schemas.inference import ChatCompletionRequest, ChatCompletionResponseStreamChunk
from stack.schemas.messages import CompletionMessage, Message, ToolConfig, UserMessage
from stack.schemas.tools import (
    RegisterToolGroupRequest,
    ToolDef,
    ToolGroup,
    ToolInvocationResult,
    ToolParameter,
)
from stack.tools.base import CallContext
from tests.api.fake import FakeInference, complete, progress, start, tool


def script(*answers: list[Any]) -> str:
    return json.dumps(answers)


def call(name: str, call_id: str = "", /, **arguments: Any) -> dict[str, Any]:
    return {"call": name, "id": call_id, "args": arguments}


def broken(text: str) -> dict[str, Any]:
    return {"broken": text}


class InstantModel(FakeInference):
    """`limit`: characters of messages, four to a token, beyond which it refuses a prompt."""

    limit = 1_000_000

    async def chat_completion(  # type: ignore[override]
        self, request: ChatCompletionRequest, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[ChatCompletionResponseStreamChunk]:
        self.requests.append(request)
        size = sum(len(message.model_dump_json()) for message in request.messages)
        if size > self.limit:
            raise ContextTooLong(size // 4, self.limit // 4)
        yield start()
        called = False
        for part in self._answer(request):
            if isinstance(part, str):
                yield progress(part)
            elif isinstance(part, float | int):
                self.waiting.set()
                await asyncio.sleep(part)
            elif "broken" in part:
                yield tool(part["broken"], "failed")
            elif "error" in part:
                raise BadRequest(part["error"])
            else:
                called = True
                arguments = json.dumps(part["args"])
                call_id = part["id"] or f"call-{len(self.requests)}-{part['call']}-{hash(arguments)}"
                yield tool(
                    ToolCall(
                        call_id=call_id,
                        tool_name=part["call"],
                        arguments=arguments,
                        arguments_json=arguments,
                    )
                )
        yield complete("end_of_message" if called else "end_of_turn")

    def _answer(self, request: ChatCompletionRequest) -> list[Any]:
        position, answers = _script(request.messages)
        after = request.messages[position + 1 :]
        number = sum(isinstance(message, CompletionMessage) for message in after)
        if any(isinstance(message, UserMessage) for message in after):
            number += 1  # it is asked to write a broken call again
        elif number:  # broken calls are not in the conversation
            answers = [answer for answer in answers if not any(map(_is_broken, answer))]
        if (request.tool_config or ToolConfig()).tool_choice == "none":
            number = len(answers) - 1
        chosen: list[Any] = answers[min(number, len(answers) - 1)]
        return chosen


def _is_broken(part: Any) -> bool:
    return isinstance(part, dict) and "broken" in part


def _script(messages: Sequence[Message]) -> tuple[int, list[Any]]:
    for position in reversed(range(len(messages))):
        message = messages[position]
        if isinstance(message, UserMessage) and isinstance(message.content, str):
            try:
                answers = json.loads(message.content)
            except ValueError:
                continue
            if isinstance(answers, list):
                return position, answers
    return len(messages) - 1, [["Hello."]]


def parameter(name: str, kind: str = "string") -> ToolParameter:
    return ToolParameter(name=name, parameter_type=kind, description=name)


class LocalTools:
    """`calls` are all that were made; `started` is set when one begins."""

    kind, extras = "mcp", frozenset[str]()

    def __init__(self) -> None:
        self.calls: list[tuple[str, JsonObject, CallContext]] = []
        self.started = asyncio.Event()
        self.running = self.at_once = 0

    def check_args(self, args: JsonObject) -> None: ...

    async def tools(self, group: ToolGroup, provider_data: Mapping[str, Any]) -> Sequence[ToolDef]:
        return [
            ToolDef(name="echo", description="Says it again", parameters=[parameter("text")]),
            ToolDef(name="wait", description="Waits", parameters=[parameter("seconds", "number")]),
            ToolDef(name="fail", description="Fails", parameters=[]),
            ToolDef(name="big", description="Much", parameters=[parameter("chars", "integer")]),
            ToolDef(name="picture", description="A picture and a file", parameters=[]),
        ]

    async def invoke(
        self, group: ToolGroup, tool_name: str, arguments: JsonObject, context: CallContext
    ) -> ToolInvocationResult:
        self.calls.append((tool_name, arguments, context))
        self.running += 1
        self.at_once = max(self.at_once, self.running)
        self.started.set()
        try:
            return await self._do(tool_name, arguments)
        finally:
            self.running -= 1

    async def _do(self, tool_name: str, arguments: JsonObject) -> ToolInvocationResult:
        match tool_name:
            case "wait":
                await asyncio.sleep(float(str(arguments["seconds"])))
                return ToolInvocationResult(content="waited")
            case "fail":
                raise BadRequest("it was not meant to be")
            case "big":
                return ToolInvocationResult(content="x" * int(str(arguments["chars"])))
            case "picture":
                image = ImageContentItem(image=ImageSource(data="iVBORw0KGgo="))
                uri = "data:text/csv;base64,YSxiCg=="
                file: JsonObject = {"name": "t.csv", "mime_type": "text/csv", "content": {"uri": uri}}
                content = [TextContentItem(text="drawn"), image]
                return ToolInvocationResult(content=content, metadata={"attachments": [file], "n": 1})
        return ToolInvocationResult(content=str(arguments["text"]), metadata={"document_ids": ["d"]})


async def add_local_tools(stack: Any) -> LocalTools:
    """Register the tools as the group "local"."""
    tools = LocalTools()
    stack.tools.groups.providers["local"] = tools
    await stack.tools.groups.register(RegisterToolGroupRequest(toolgroup_id="local", provider_id="local"), {})
    return tools
