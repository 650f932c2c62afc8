"""What the model of an agent reads: instructions, earlier turns, and the turn so far; cut to what fits.

When it is more than the model reads, the oldest turns are left out, whole; when this turn alone is too long,
the responses of its tools are shortened. What the caller wrote in this turn is never cut: if that does not
fit, the turn fails with ContextTooLong.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from stack.agents.records import Record
from stack.schemas.agents import InferenceStep, ShieldCallStep, Step, ToolExecutionStep
from stack.schemas.content import InterleavedContent, TextContentItem
from stack.schemas.messages import CompletionMessage, Message, SystemMessage, ToolResponseMessage, UserMessage

MIN_RESPONSE_CHARS = 400  # a tool's response is not shortened below this
SHORTENED = "\n… [shortened]"


def turn_messages(record: Record) -> list[Message]:
    """A turn as a conversation; nothing of one whose input a shield refused. Its last answer is there if the
    turn was completed."""
    if _is_refused(record):
        return []
    messages: list[Message] = [*record.request.messages, *step_messages(record.steps)]
    if record.status == "completed" and record.output is not None and record.output.message.content:
        messages.append(record.output.message.model_copy(update={"tool_calls": None}))
    return messages


def _is_refused(record: Record) -> bool:
    return any(
        isinstance(step, ShieldCallStep) and step.violation and step.violation.violation_level == "error"
        for step in record.steps
    ) and not any(isinstance(step, InferenceStep) for step in record.steps)


def step_messages(steps: Sequence[Step]) -> list[Message]:
    """Each answer that was followed by tools, and their responses.

    Others are left out: the last answer, and those that came to nothing (a call that could not be read, or
    was made before).
    """
    messages: list[Message] = []
    answer: CompletionMessage | None = None
    responses: list[ToolResponseMessage] = []
    for step in [*steps, None]:
        if isinstance(step, ToolExecutionStep):
            responses += [
                ToolResponseMessage(call_id=response.call_id, content=response.content)
                for response in step.tool_responses
            ]
        elif step is None or isinstance(step, InferenceStep):
            if answer is not None and responses:
                messages += _exchange(answer, responses)
            answer, responses = (step.model_response if step else None), []
    return messages


def _exchange(answer: CompletionMessage, responses: Sequence[ToolResponseMessage]) -> list[Message]:
    """An answer with those of its calls that have responses, in the order of the calls."""
    by_id = {response.call_id: response for response in responses}
    calls = [call for call in answer.tool_calls or [] if call.call_id in by_id]
    ordered = [by_id[call.call_id] for call in calls] if calls else list(responses)
    return [answer.model_copy(update={"tool_calls": calls or None}), *ordered]


def chars(messages: Iterable[Message]) -> int:
    """About how long messages are; an image counts as a thousand characters."""
    return sum(_message_chars(message) for message in messages)


def _message_chars(message: Message) -> int:
    size = 16 + _content_chars(message.content)
    if isinstance(message, UserMessage) and message.context is not None:
        size += _content_chars(message.context)
    if isinstance(message, CompletionMessage):
        size += sum(len(json.dumps(call.arguments)) + 40 for call in message.tool_calls or [])
    return size


def _content_chars(content: InterleavedContent) -> int:
    if isinstance(content, str):
        return len(content)
    items = content if isinstance(content, list) else [content]
    return sum(len(item.text) if isinstance(item, TextContentItem) else 1000 for item in items)


class Past(NamedTuple):
    """An earlier turn: what was said, and about how long it is in characters."""

    messages: list[Message]
    size: int


def past(record: Record) -> Past:
    messages = turn_messages(record)
    return Past(messages, chars(messages))


class Prompt:
    """Grows with the turn's steps. `dropped` turns were left out so far."""

    def __init__(
        self, instructions: str, earlier: Sequence[Past], own: Record, overhead: int = 0, unread: int = 0
    ) -> None:
        """`earlier` turns, the oldest first, after `unread` still older ones; `overhead`: characters of the
        tools' definitions."""
        self.dropped = unread
        self._system: list[Message] = [SystemMessage(content=instructions)] if instructions else []
        self._earlier = list(earlier)
        self._own, self._overhead = own, overhead
        self._share: int | None = None  # most characters of a tool's response

    def messages(self, note: str | None = None) -> list[Message]:
        """`note` is said to the model after all else."""
        own = self._own_messages()
        if note is not None:
            own.append(UserMessage(content=note))
        return [*self._system, *(message for turn in self._earlier for message in turn.messages), *own]

    def size(self) -> int:
        """Characters, definitions of tools included."""
        past = sum(turn.size for turn in self._earlier)
        return past + chars(self._system) + chars(self._own_messages()) + self._overhead

    def _own_messages(self) -> list[Message]:
        return [*self._own.request.messages, *map(self._shortened, step_messages(self._own.steps))]

    def fit(self, limit: int) -> bool:
        """Cut down to `limit` characters as far as the rule allows; whether anything was cut."""
        before = self.dropped, self._share
        excess = self.size() - limit
        while self._earlier and excess > 0:
            excess -= self._earlier.pop(0).size
            self.dropped += 1
        if excess > 0:
            responses = [
                len(message.content) if isinstance(message.content, str) else MIN_RESPONSE_CHARS
                for message in step_messages(self._own.steps)
                if isinstance(message, ToolResponseMessage)
            ]
            if responses:
                room = sum(min(size, self._share or size) for size in responses) - excess
                self._share = max(MIN_RESPONSE_CHARS, room // len(responses))
        return (self.dropped, self._share) != before

    def _shortened(self, message: Message) -> Message:
        content = message.content
        if (
            self._share is None
            or not isinstance(message, ToolResponseMessage)
            or not isinstance(content, str)
            or len(content) <= self._share
        ):
            return message
        return message.model_copy(update={"content": content[: self._share - len(SHORTENED)] + SHORTENED})
