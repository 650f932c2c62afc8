"""One item of a batch: what is asked of the model, and what it answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from stack.batch.parts import Row
from stack.batch.work import Answer
from stack.engine.base import Priority
from stack.engine.fold import fold_chat_completion, fold_completion
from stack.engine.tool_config import with_tool_config
from stack.errors import BadRequest
from stack.models.serving import Serving
from stack.schemas.inference import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionRequest,
    CompletionResponse,
    MetricInResponse,
)
from stack.schemas.messages import CompletionMessage

Operation = Literal["completion", "chat-completion"]


class Asked(BaseModel):
    """What all items of a batch have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    operation: Operation
    options: dict[str, Any]
    """The fields of the operation's request, `model_id` among them, without its content or messages."""

    def check(self) -> None:
        """Raises BadRequest for options that no item can be asked with."""
        if self.operation == "completion":
            _parsed(CompletionRequest, self.options | {"content": ""})
        else:
            _parsed(ChatCompletionRequest, self.options | {"messages": [{"role": "user", "content": ""}]})


class Serves(Protocol):
    @property
    def serving(self) -> Serving: ...


@asynccontextmanager
async def answering(
    open_stack: Callable[[], AbstractAsyncContextManager[Serves]],
    asked: Asked,
    provider_data: Mapping[str, Any] | None = None,
) -> AsyncGenerator[Answer]:
    """Answers rows that have what the operation's request needs besides: `content`, or `messages`.

    A row may have other options of its own, and a `custom_id`, which comes back with its `response`.
    """
    async with open_stack() as stack:
        yield _Answering(stack.serving, asked, provider_data).answer


class _Answering:
    def __init__(self, serving: Serving, asked: Asked, provider_data: Mapping[str, Any] | None) -> None:
        self._serving, self._asked, self._provider_data = serving, asked, provider_data

    async def answer(self, row: Row) -> Row:
        fields = self._asked.options | row
        custom_id = fields.pop("custom_id", None)
        response = await (
            self._completion(fields) if self._asked.operation == "completion" else self._chat(fields)
        )
        answer: Row = {"response": response.model_dump(mode="json", exclude_none=True)}
        return answer if custom_id is None else {"custom_id": custom_id} | answer

    async def _completion(self, fields: Row) -> CompletionResponse:
        request = _parsed(CompletionRequest, fields)
        model = await self._serving(request.model_id, "llm", self._provider_data)
        return await fold_completion(model.completion(request, Priority.BATCH))

    async def _chat(self, fields: Row) -> ChatCompletionResponse:
        request = with_tool_config(_parsed(ChatCompletionRequest, fields))
        model = await self._serving(request.model_id, "llm", self._provider_data)
        return await fold_chat_completion(model.chat_completion(request, Priority.BATCH))


def _parsed(schema: type[Any], fields: Row) -> Any:
    try:
        return schema.model_validate(fields | {"stream": False})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadRequest(f"{where}: {first['msg']}") from None


def completion_of(result: Row) -> CompletionResponse:
    """What a batch's answer has for an item. An item that failed has no content, and the metric `error`."""
    if "error" not in result:
        return CompletionResponse.model_validate(result["response"])
    return CompletionResponse(content="", stop_reason="end_of_turn", metrics=[_error_metric(result)])


def chat_completion_of(result: Row) -> ChatCompletionResponse:
    """As `completion_of`."""
    if "error" not in result:
        return ChatCompletionResponse.model_validate(result["response"])
    message = CompletionMessage(content="", stop_reason="end_of_turn")
    return ChatCompletionResponse(completion_message=message, metrics=[_error_metric(result)])


def _error_metric(result: Row) -> MetricInResponse:
    """The error's status as a number, and its text where a unit stands: the schema has no other place."""
    error = result["error"]
    return MetricInResponse(metric="error", value=error["status"], unit=error["detail"])
