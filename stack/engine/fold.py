"""Chunks of a stream -> one response."""

from __future__ import annotations

from collections.abc import AsyncIterator

from stack.errors import StackError
from stack.schemas.content import TextDelta, ToolCall, ToolCallDelta
from stack.schemas.inference import (
    ChatCompletionResponse,
    ChatCompletionResponseStreamChunk,
    CompletionResponse,
    CompletionResponseStreamChunk,
    MetricInResponse,
    TokenLogProbs,
)
from stack.schemas.messages import CompletionMessage, StopReason


async def fold_completion(chunks: AsyncIterator[CompletionResponseStreamChunk]) -> CompletionResponse:
    """Text and logprobs joined, stop reason and metrics of the last chunk that has them."""
    folded = _Folded()
    async for chunk in chunks:
        folded.text.append(chunk.delta)
        folded.add(chunk.logprobs, chunk.stop_reason, chunk.metrics)
    return CompletionResponse(
        content="".join(folded.text),
        stop_reason=folded.checked_stop_reason(),
        logprobs=folded.logprobs,
        metrics=folded.metrics,
    )


async def fold_chat_completion(
    chunks: AsyncIterator[ChatCompletionResponseStreamChunk],
) -> ChatCompletionResponse:
    """As `fold_completion`; a tool call that could not be parsed stays in the content as it was written."""
    folded = _Folded()
    tool_calls: list[ToolCall] = []
    async for chunk in chunks:
        match chunk.event.delta:
            case TextDelta(text=text):
                folded.text.append(text)
            case ToolCallDelta(parse_status="succeeded", tool_call=ToolCall() as call):
                tool_calls.append(call)
            case ToolCallDelta(parse_status="failed", tool_call=str() as raw):
                folded.text.append(raw)
        folded.add(chunk.event.logprobs, chunk.event.stop_reason, chunk.metrics)
    message = CompletionMessage(
        content="".join(folded.text),
        stop_reason=folded.checked_stop_reason(),
        tool_calls=tool_calls or None,
    )
    return ChatCompletionResponse(
        completion_message=message, logprobs=folded.logprobs, metrics=folded.metrics
    )


class _Folded:
    def __init__(self) -> None:
        self.text: list[str] = []
        self.logprobs: list[TokenLogProbs] | None = None
        self.stop_reason: StopReason | None = None
        self.metrics: list[MetricInResponse] | None = None

    def add(
        self,
        logprobs: list[TokenLogProbs] | None,
        stop_reason: StopReason | None,
        metrics: list[MetricInResponse] | None,
    ) -> None:
        if logprobs is not None:
            self.logprobs = [*(self.logprobs or ()), *logprobs]
        self.stop_reason = stop_reason or self.stop_reason
        self.metrics = metrics or self.metrics

    def checked_stop_reason(self) -> StopReason:
        if self.stop_reason is None:
            raise StackError("the model's answer broke off before its end")
        return self.stop_reason
