"""A model whose answers the test writes: these tests are about routes, not about text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from stack.engine.base import Priority
from stack.schemas.content import TextDelta, ToolCallDelta
from stack.schemas.inference import (
    ChatCompletionRequest,
    ChatCompletionResponseEvent,
    ChatCompletionResponseStreamChunk,
    CompletionRequest,
    CompletionResponseStreamChunk,
    EmbeddingsRequest,
    EmbeddingsResponse,
    MetricInResponse,
)


def start() -> ChatCompletionResponseStreamChunk:
    return progress("", event_type="start")


def progress(text: str, **fields: Any) -> ChatCompletionResponseStreamChunk:
    event = {"event_type": "progress", "delta": TextDelta(text=text), **fields}
    return ChatCompletionResponseStreamChunk(event=ChatCompletionResponseEvent(**event))


def tool(call: Any, status: Any = "succeeded") -> ChatCompletionResponseStreamChunk:
    return progress("", delta=ToolCallDelta(tool_call=call, parse_status=status))


def complete(stop_reason: Any = "end_of_turn") -> ChatCompletionResponseStreamChunk:
    chunk = progress("", event_type="complete", stop_reason=stop_reason)
    return chunk.model_copy(update={"metrics": [MetricInResponse(metric="total_tokens", value=7)]})


class FakeInference:
    """Plays `script`: chunks are sent, numbers are seconds of waiting, errors are raised."""

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.requests: list[Any] = []
        self.closed = 0
        self.waiting, self.freed = asyncio.Event(), asyncio.Event()

    async def _play(self, request: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        try:
            for step in self.script:
                if isinstance(step, BaseException):
                    raise step
                if isinstance(step, float):
                    self.waiting.set()
                    await asyncio.sleep(step)
                else:
                    yield step
        finally:
            self.closed += 1
            self.freed.set()

    def completion(
        self, request: CompletionRequest, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[CompletionResponseStreamChunk]:
        return self._play(request)

    def chat_completion(
        self, request: ChatCompletionRequest, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[ChatCompletionResponseStreamChunk]:
        return self._play(request)

    async def embeddings(self, request: EmbeddingsRequest) -> EmbeddingsResponse:
        async for answer in self._play(request):
            assert isinstance(answer, EmbeddingsResponse)
            return answer
        raise AssertionError("the script has no answer")

    async def describe(self) -> dict[str, Any]:
        return {}
