"""What a shield provider is, and what all of them share: params, the text in messages, models' ids."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from stack.errors import BadRequest, NotFound
from stack.models.serving import Serving
from stack.safety.scans import Scans
from stack.schemas.common import JsonObject
from stack.schemas.content import ImageContentItem, InterleavedContent, TextContentItem, ToolCall
from stack.schemas.messages import CompletionMessage, Message, UserMessage
from stack.schemas.safety import SafetyViolation
from stack.schemas.shields import Shield


class ShieldParams(BaseModel):
    """What can be set when a shield is registered, and for one call."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


P = TypeVar("P", bound=ShieldParams)


@dataclass(frozen=True, slots=True)
class Call(Generic[P]):
    """One run of a shield. `messages` has at least one."""

    shield: Shield
    params: P
    messages: Sequence[Message]
    provider_data: Mapping[str, Any]


class ShieldProvider(ABC, Generic[P]):
    params: type[P]

    def __init__(self, serving: Serving, scans: Scans) -> None:
        self._serving, self._scans = serving, scans

    async def check(self, shield: Shield, params: P) -> None:  # most have nothing to add
        """Raises BadRequest for a shield that could not run, as far as that can be known now."""

    @abstractmethod
    async def run(self, call: Call[P]) -> SafetyViolation | None:
        """None: nothing was found. Whatever keeps it from looking is a StackError."""


def parse_params(model: type[P], params: JsonObject | None) -> P:
    """Raises BadRequest that names the parameter. A null parameter is one that is left out."""
    given = {key: value for key, value in (params or {}).items() if value is not None}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(["params", *map(str, problem["loc"])])
        if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
            known = ", ".join(model.model_fields)
            raise BadRequest(f"{where}: there is no such parameter; there are {known}") from error
        message = problem["msg"].removeprefix("Value error, ")
        raise BadRequest(f"{where}: {message[:1].lower()}{message[1:]}") from error


async def check_model(serving: Serving, shield: Shield, classifier: bool) -> None:
    """Whether the model that the shield asks is registered and, once that is known, of the right kind."""
    model_id = shield.provider_resource_id
    try:
        model, status = await serving.find(model_id)
    except NotFound:
        raise BadRequest(
            f"provider_shield_id names the model that shield {shield.identifier!r} asks, and there is no "
            f"model {model_id!r}; register it first, or give the id of another one from GET /v1/models"
        ) from None
    if model.model_type != "llm":
        raise BadRequest(f"model {model_id!r} is an embedding model, which a shield cannot ask")
    described = status.description if status else {}
    if classifier and "tool_prompt_formats" in described:
        raise BadRequest(
            f"model {model_id!r} generates text and does not classify: its provider is llama-guard"
        )
    if classifier and len(described.get("labels", ("", ""))) < 2:
        raise BadRequest(
            f"model {model_id!r} has one output, so it ranks texts: prompt-guard needs one with labels"
        )
    if not classifier and "labels" in described:
        raise BadRequest(
            f"model {model_id!r} is a classifier, which writes no text: its provider is prompt-guard"
        )


def texts_of(message: Message) -> list[str]:
    """All text of a message: what a model reads of it as one, then each argument of its tool calls."""
    text = content_text(message.content)
    if isinstance(message, UserMessage) and message.context is not None:
        text = f"{text}\n\n{content_text(message.context)}"
    calls = (message.tool_calls or []) if isinstance(message, CompletionMessage) else []
    return [text, *(argument for call in calls for argument in dict.fromkeys(_arguments(call)))]


def all_texts(messages: Sequence[Message]) -> list[str]:
    return [text for message in messages for text in texts_of(message) if text]


def content_text(content: InterleavedContent) -> str:
    """The texts of a content without anything between them, as models read them."""
    return "".join(item.text for item in _items(content) if isinstance(item, TextContentItem))


def images_of(messages: Sequence[Message]) -> list[ImageContentItem]:
    contents = [message.content for message in messages]
    contents += [m.context for m in messages if isinstance(m, UserMessage) and m.context is not None]
    return [item for content in contents for item in _items(content) if isinstance(item, ImageContentItem)]


def _items(content: InterleavedContent) -> Sequence[TextContentItem | ImageContentItem]:
    if isinstance(content, str):
        return [TextContentItem(text=content)]
    return content if isinstance(content, list) else [content]


def _arguments(call: ToolCall) -> Iterator[str]:
    yield from _scalars(call.arguments if isinstance(call.arguments, dict) else _json(call.arguments))
    if call.arguments_json is not None:
        yield from _scalars(_json(call.arguments_json))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _scalars(value: Any) -> Iterator[str]:
    """All that stands in a JSON value, keys included, without recursion."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case dict() as items:
                waiting += [*items.values(), *items]
            case list() as items:
                waiting += items
            case None:
                pass
            case scalar:
                yield str(scalar)
