"""Conversations as spans have them, in OpenTelemetry's form for generative AI, and as datasets have them.

`gen_ai.input.messages` is a JSON list of `{"role", "parts"}`, `gen_ai.output.messages` one of one message.
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json, to_json

from stack.schemas.content import InterleavedContent, TextContentItem, ToolCall
from stack.schemas.messages import CompletionMessage, Message, ToolResponseMessage, UserMessage

Raw = dict[str, Any]

INPUT = "gen_ai.input.messages"
OUTPUT = "gen_ai.output.messages"


def told_input(messages: Sequence[Message]) -> str:
    """The value of `INPUT`."""
    return _json([{"role": each.role, "parts": _parts(each)} for each in messages])


def told_prompt(content: InterleavedContent) -> str:
    """The value of `INPUT` for a completion, which has no messages."""
    return _json([{"role": "user", "parts": _content_parts(content)}])


def told_output(text: str, calls: Sequence[ToolCall], finish_reason: str | None) -> str:
    """The value of `OUTPUT`."""
    parts = [*_content_parts(text), *map(_call_part, calls)]
    return _json([{"role": "assistant", "parts": parts, "finish_reason": finish_reason}])


def messages_of(told: str) -> list[Raw] | None:
    """Messages as rows of datasets have them; None when they hold what is not kept, such as images.

    Raises ValueError for what is not in that form.
    """
    found: list[Raw] = []
    try:
        for message in from_json(told):
            read = _message(message["role"], message["parts"])
            if read is None:
                return None
            found += read
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no messages in OpenTelemetry's form ({type(error).__name__}: {error})") from None
    return found


def _message(role: str, parts: Sequence[Raw]) -> list[Raw] | None:
    """Of a tool's message, one for each of its responses."""
    texts: list[str] = []
    calls: list[Raw] = []
    responses: list[Raw] = []
    for part in parts:
        match part["type"]:
            case "text":
                texts.append(part["content"])
            case "tool_call":
                call = {"call_id": part["id"], "tool_name": part["name"], "arguments": part["arguments"]}
                calls.append(call)
            case "tool_call_response":
                responses.append({"role": "tool", "call_id": part["id"], "content": part["response"]})
            case _:
                return None
    if role == "tool":
        return responses
    return [{"role": role, "content": "".join(texts)} | ({"tool_calls": calls} if calls else {})]


def _parts(message: Message) -> list[Raw]:
    parts = _content_parts(message.content)
    match message:
        case ToolResponseMessage(call_id=call_id):
            response = "".join(part.get("content", "") for part in parts)
            return [{"type": "tool_call_response", "id": call_id, "response": response}]
        case CompletionMessage(tool_calls=calls):
            return parts + [_call_part(call) for call in calls or []]
        case UserMessage(context=context) if context is not None:
            return [*parts, {"type": "text", "content": "\n\n"}, *_content_parts(context)]
        case _:
            return parts


def _content_parts(content: InterleavedContent) -> list[Raw]:
    if isinstance(content, str):
        return [{"type": "text", "content": content}] if content else []
    items = content if isinstance(content, list) else [content]
    return [
        {"type": "text", "content": item.text}
        if isinstance(item, TextContentItem)
        else {"type": "blob", "modality": "image"}  # without its bytes
        for item in items
    ]


def _call_part(call: ToolCall) -> Raw:
    arguments: Any = call.arguments if call.arguments_json is None else from_json(call.arguments_json)
    return {"type": "tool_call", "id": call.call_id, "name": call.tool_name, "arguments": arguments}


def _json(value: Any) -> str:
    return to_json(value, fallback=str).decode()
