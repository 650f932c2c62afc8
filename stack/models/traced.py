"""A model whose calls are spans, with OpenTelemetry's attributes for generative AI."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar, cast

from opentelemetry.trace import Span, SpanKind, use_span
from pydantic_core import to_json

from stack import tracing
from stack.engine.base import Inference, Priority

if TYPE_CHECKING:
    from stack.schemas.inference import (
        ChatCompletionRequest,
        ChatCompletionResponseStreamChunk,
        CompletionRequest,
        CompletionResponseStreamChunk,
        EmbeddingsRequest,
        EmbeddingsResponse,
    )
    from stack.schemas.messages import StopReason
    from stack.schemas.sampling import SamplingParams

T = TypeVar("T")

_FINISH = {"end_of_turn": "stop", "end_of_message": "tool_calls", "out_of_tokens": "length"}
_USAGE = {
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
}


def traced(model: Inference, model_id: str, content: bool) -> Inference:
    """The model; while the current span is recorded, with a span for each call. `content`: texts, too."""
    return model if tracing.recorded() is None else cast("Inference", _Traced(model, model_id, content))


class _Traced:
    """What it does not know is the model's own."""

    def __init__(self, model: Inference, model_id: str, content: bool) -> None:
        self._model, self._model_id, self._content = model, model_id, content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def completion(
        self, request: CompletionRequest, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[CompletionResponseStreamChunk]:
        span = self._begin("text_completion", request.sampling_params)
        self._input(span, request.content)
        return self._stream(span, self._model.completion(request, priority), _completion_end, _text)

    def chat_completion(
        self, request: ChatCompletionRequest, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[ChatCompletionResponseStreamChunk]:
        span = self._begin("chat", request.sampling_params)
        self._input(span, [message.model_dump(mode="json") for message in request.messages])
        return self._stream(span, self._model.chat_completion(request, priority), _chat_end, _chat_text)

    async def embeddings(self, request: EmbeddingsRequest) -> EmbeddingsResponse:
        with tracing.span(f"embeddings {self._model_id}", self._attributes("embeddings")):
            return await self._model.embeddings(request)

    def _begin(self, operation: str, params: SamplingParams | None) -> Span:
        attributes = self._attributes(operation)
        if params is not None and params.max_tokens:
            attributes["gen_ai.request.max_tokens"] = params.max_tokens
        return tracing.TRACER.start_span(
            f"{operation} {self._model_id}", kind=SpanKind.CLIENT, attributes=attributes
        )

    def _attributes(self, operation: str) -> dict[str, Any]:
        return {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "stack",
            "gen_ai.request.model": self._model_id,
        }

    def _input(self, span: Span, said: Any) -> None:
        if self._content:
            span.set_attribute("gen_ai.input.messages", to_json(said, fallback=str).decode())

    async def _stream(
        self,
        span: Span,
        chunks: AsyncIterator[T],
        end_of: Callable[[T], StopReason | None],
        text_of: Callable[[T], str],
    ) -> AsyncGenerator[T]:
        said: list[str] = []
        try:
            async with aclosing(cast("AsyncGenerator[T]", chunks)) as stream:
                with use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
                    first = await anext(stream, None)  # here the call is made: below this span
                if first is not None:
                    self._note(span, first, end_of, text_of, said)
                    yield first
                    async for chunk in stream:
                        self._note(span, chunk, end_of, text_of, said)
                        yield chunk
        except BaseException as error:
            tracing.end(span, error)
            raise
        if self._content:
            span.set_attribute("gen_ai.output.messages", "".join(said))
        tracing.end(span)

    def _note(
        self,
        span: Span,
        chunk: Any,
        end_of: Callable[[Any], StopReason | None],
        text_of: Callable[[Any], str],
        said: list[str],
    ) -> None:
        if self._content:
            said.append(text_of(chunk))
        for metric in chunk.metrics or ():
            if (name := _USAGE.get(metric.metric)) is not None:
                span.set_attribute(name, int(metric.value))
        if (reason := end_of(chunk)) is not None:
            span.set_attribute("gen_ai.response.finish_reasons", [_FINISH[reason]])


def _completion_end(chunk: CompletionResponseStreamChunk) -> StopReason | None:
    return chunk.stop_reason


def _chat_end(chunk: ChatCompletionResponseStreamChunk) -> StopReason | None:
    return chunk.event.stop_reason


def _text(chunk: CompletionResponseStreamChunk) -> str:
    return chunk.delta


def _chat_text(chunk: ChatCompletionResponseStreamChunk) -> str:
    delta = chunk.event.delta
    return delta.text if delta.type == "text" else to_json(delta).decode()
