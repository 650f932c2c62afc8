"""A dataset's row -> the conversation that is learned. Nothing heavy: submissions look at rows, too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from stack.datasets.rows import place
from stack.errors import BadRequest
from stack.schemas.messages import CompletionMessage, Message, UserMessage
from stack.schemas.post_training import DatasetFormat

_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)
_ROLES = {"ipython": "tool"}


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, and which of the assistant's are learned."""

    messages: list[Message]
    which: Literal["all", "last"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with a better and a worse answer."""

    prompt: list[Message]
    chosen: str
    rejected: str


def conversation(row: Mapping[str, Any], index: int, data_format: DatasetFormat) -> Conversation:
    """Raises BadRequest, which names the row, for one that nothing can be learned from.

    `dialog` learns all of the assistant's messages, `instruct` the last one; a column `answer` is one.
    """
    where = place(index)
    messages = _messages(row, index)
    if "answer" in row:
        messages.append(_assistant(_text(row, "answer", index)))
    if not any(isinstance(message, CompletionMessage) for message in messages):
        raise BadRequest(f"{where}: has no message of the assistant to learn from")
    if data_format == "dialog":
        return Conversation(messages, "all")
    while not isinstance(messages[-1], CompletionMessage):  # what follows it is never read
        messages.pop()
    return Conversation(messages, "last")


def pair(row: Mapping[str, Any], index: int) -> Pair:
    """`messages`, `chosen` and `rejected`, or `messages` that end with the chosen answer, and `rejected`."""
    messages = _messages(row, index)
    rejected = _text(row, "rejected", index)
    if "chosen" in row:
        chosen = _text(row, "chosen", index)
    elif isinstance(last := messages[-1], CompletionMessage) and isinstance(last.content, str):
        chosen = last.content
        messages.pop()
    else:
        raise BadRequest(
            f"{place(index)}: has no chosen answer; give a column 'chosen', or end 'messages' with the "
            "assistant's"
        )
    if not messages or isinstance(messages[-1], CompletionMessage):
        raise BadRequest(f"{place(index, 'messages')}: a prompt ends with a message of the user, or a tool's")
    if chosen == rejected:
        raise BadRequest(f"{place(index)}: chosen and rejected are the same text")
    return Pair(messages, chosen, rejected)


def _messages(row: Mapping[str, Any], index: int) -> list[Message]:
    if "messages" in row:
        return [_message(message, index, number) for number, message in enumerate(row["messages"])]
    return [UserMessage(content=_text(row, "question", index))]


def _message(raw: Mapping[str, Any], index: int, number: int) -> Message:
    role = _ROLES.get(raw["role"], raw["role"])
    values: dict[str, Any] = {"role": role, "content": raw.get("content") or ""}
    if role == "assistant":
        values["stop_reason"] = "end_of_turn"
        values["tool_calls"] = [_call(call) for call in raw.get("tool_calls") or []] or None
    elif role == "tool":
        values["call_id"] = str(raw.get("call_id") or raw.get("tool_call_id") or "")
    try:
        return _MESSAGE.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"{place(index, 'messages')}: message {number}: {name}: {first['msg']}") from None


def _call(raw: Any) -> Any:
    """A tool call as this API writes it, or as OpenAI's does."""
    if not isinstance(raw, Mapping) or not isinstance(function := raw.get("function"), Mapping):
        return raw
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = {"arguments": arguments}
    return {"call_id": str(raw.get("id", "")), "tool_name": function.get("name"), "arguments": arguments}


def _text(row: Mapping[str, Any], column: str, index: int) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{place(index, column)}: a text is needed here")
    return value


def _assistant(text: str) -> CompletionMessage:
    return CompletionMessage(content=text, stop_reason="end_of_turn")
