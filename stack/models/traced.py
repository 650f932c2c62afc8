"""A model whose calls are spans, with OpenTelemetry's attributes for generative AI."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar, cast

from opentelemetry.trace import Span, SpanKind, use_span

from stack import tracing
from stack.engine.base import Inference, Priority
from stack.schemas.content import ToolCall, ToolCallDelta
from stack.telemetry.conversations import INPUT, OUTPUT, told_input, told_output, told_prompt

if TYPE_CHECKING:
    from stack.engine.embedding.vectors import Vectors
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
        if self._content:
            span.set_attribute(INPUT, told_prompt(request.content))
        return self._stream(span, self._model.completion(request, priority), _Completion())

    def chat_completion(
        self, request: ChatCompletionRequest, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[ChatCompletionResponseStreamChunk]:
        span = self._begin("chat", request.sampling_params)
        if self._content:
            span.set_attribute(INPUT, told_input(request.messages))
        return self._stream(span, self._model.chat_completion(request, priority), _Chat())

    async def embeddings(self, request: EmbeddingsRequest) -> EmbeddingsResponse:
        with tracing.span(f"embeddings {self._model_id}", self._attributes("embeddings")):
            return await self._model.embeddings(request)

    async def vectors(
        self, request: EmbeddingsRequest, priority: Priority = Priority.INTERACTIVE, whole: bool = False
    ) -> Vectors:
        with tracing.span(f"embeddings {self._model_id}", self._attributes("embeddings")):
            return await self._model.vectors(request, priority, whole)

    def _begin(self, operation: str, params: SamplingParams | None) -> Span:
        attributes = self._attributes(operation)
        if params is not None and params.max_tokens:
            attributes["gen_ai.request.max_tokens"] = params.max_tokens
        return tracing.begin(f"{operation} {self._model_id}", attributes, SpanKind.CLIENT)

    def _attributes(self, operation: str) -> dict[str, Any]:
        return {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "stack",
            "gen_ai.request.model": self._model_id,
        }

    async def _stream(self, span: Span, chunks: AsyncIterator[T], said: _Said) -> AsyncGenerator[T]:
        try:
            async with aclosing(cast("AsyncGenerator[T]", chunks)) as stream:
                with use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
                    first = await anext(stream, None)  # here the call is made: below this span
                if first is not None:
                    said.note(span, first)
                    yield first
                    async for chunk in stream:
                        said.note(span, chunk)
                        yield chunk
        except BaseException as error:
            tracing.end(span, error)
            raise
        if self._content:
            span.set_attribute(OUTPUT, said.told())
        tracing.end(span)


class _Said:
    """What the chunks of an answer say, together."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._calls: list[ToolCall] = []
        self._finish: str | None = None

    def note(self, span: Span, chunk: Any) -> None:
        for metric in chunk.metrics or ():
            if (name := _USAGE.get(metric.metric)) is not None:
                span.set_attribute(name, int(metric.value))
        if (reason := self._take(chunk)) is not None:
            self._finish = _FINISH[reason]
            span.set_attribute("gen_ai.response.finish_reasons", [self._finish])

    def told(self) -> str:
        return told_output("".join(self._texts), self._calls, self._finish)

    def _take(self, chunk: Any) -> StopReason | None:
        raise NotImplementedError


class _Completion(_Said):
    def _take(self, chunk: CompletionResponseStreamChunk) -> StopReason | None:
        self._texts.append(chunk.delta)
        return chunk.stop_reason


class _Chat(_Said):
    def _take(self, chunk: ChatCompletionResponseStreamChunk) -> StopReason | None:
        match chunk.event.delta:
            case ToolCallDelta(tool_call=ToolCall() as call):
                self._calls.append(call)
            case ToolCallDelta():
                pass  # a call's raw text
            case delta:
                self._texts.append(delta.text if delta.type == "text" else "")
        return chunk.event.stop_reason
