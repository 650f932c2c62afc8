"""An engine's outputs -> the chunks of the API's streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

from stack.engine.base import FinishReason, Output, TokenLogprob
from stack.engine.tool_calls.parsing import CallScanner
from stack.errors import StackError
from stack.schemas.content import ContentDelta, TextDelta, ToolCallDelta
from stack.schemas.inference import (
    ChatCompletionResponseEvent,
    ChatCompletionResponseEventType,
    ChatCompletionResponseStreamChunk,
    CompletionResponseStreamChunk,
    MetricInResponse,
    TokenLogProbs,
)
from stack.schemas.messages import StopReason

CompletionChunks = AsyncGenerator[CompletionResponseStreamChunk]
ChatChunks = AsyncGenerator[ChatCompletionResponseStreamChunk]


def pause_between_chunks(streams: int) -> float:
    """Seconds: each message costs CPU on its way to the client, so the more streams, the fewer messages."""
    return min(0.15, 0.015 + 0.0045 * streams)


async def paced(outputs: AsyncIterator[Output], pause: Callable[[], float]) -> AsyncGenerator[Output]:
    """The first output at once, later ones after a pause in which the engine joins what comes."""
    async for output in outputs:
        yield output
        if output.finish is None:
            await asyncio.sleep(pause())


async def joined(outputs: AsyncIterator[Output]) -> AsyncGenerator[Output]:
    """All as one output."""
    whole = Output()
    texts = []
    async for output in outputs:
        texts.append(output.text)
        whole.token_ids += output.token_ids
        whole.logprobs += output.logprobs
        whole.finish = output.finish
    whole.text = "".join(texts)
    yield whole


async def completion_chunks(outputs: AsyncIterator[Output], prompt_tokens: int) -> CompletionChunks:
    usage = _Usage(prompt_tokens)
    async for output in outputs:
        usage.add(output)
        if output.text:
            yield CompletionResponseStreamChunk(delta=output.text, logprobs=usage.take_logprobs())
    yield CompletionResponseStreamChunk(
        delta="",
        stop_reason=_stop_reason(usage.checked_finish(), calls=0),
        logprobs=usage.take_logprobs(),
        metrics=usage.metrics(),
    )


async def chat_chunks(
    outputs: AsyncIterator[Output], prompt_tokens: int, scanner: CallScanner | None, stream: bool
) -> ChatChunks:
    """`scanner` finds tool calls. Without `stream` their beginnings and pieces are left out."""
    usage = _Usage(prompt_tokens)
    started = False
    async for output in outputs:
        if not started:  # not before the engine took the request: an error comes instead of the first chunk
            started = True
            yield _chunk("start", TextDelta(text=""))
        usage.add(output)
        for delta in _deltas(output, scanner):
            if stream or not _is_progress(delta):
                yield _chunk("progress", delta, logprobs=usage.take_logprobs())
    calls = scanner.succeeded if scanner is not None else 0
    yield _chunk(
        "complete",
        TextDelta(text=""),
        logprobs=usage.take_logprobs(),
        stop_reason=_stop_reason(usage.checked_finish(), calls),
        metrics=usage.metrics(),
    )


def _deltas(output: Output, scanner: CallScanner | None) -> Sequence[ContentDelta]:
    if scanner is None:
        return [TextDelta(text=output.text)] if output.text else []
    deltas = scanner.push(output.text)
    return [*deltas, *scanner.finish()] if output.finish is not None else deltas


def _is_progress(delta: ContentDelta) -> bool:
    return isinstance(delta, ToolCallDelta) and delta.parse_status in ("started", "in_progress")


def _chunk(
    event_type: ChatCompletionResponseEventType,
    delta: ContentDelta,
    logprobs: list[TokenLogProbs] | None = None,
    stop_reason: StopReason | None = None,
    metrics: list[MetricInResponse] | None = None,
) -> ChatCompletionResponseStreamChunk:
    event = ChatCompletionResponseEvent(
        event_type=event_type, delta=delta, logprobs=logprobs, stop_reason=stop_reason
    )
    return ChatCompletionResponseStreamChunk(event=event, metrics=metrics)


def _stop_reason(finish: FinishReason, calls: int) -> StopReason:
    if finish is FinishReason.LENGTH:
        return "out_of_tokens"
    return "end_of_message" if calls else "end_of_turn"


class _Usage:
    """Counts tokens; keeps logprobs until there is a chunk to send them with."""

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._completion_tokens = 0
        self._logprobs: list[TokenLogprob] = []
        self._finish: FinishReason | None = None

    def add(self, output: Output) -> None:
        self._completion_tokens += len(output.token_ids)
        self._logprobs += output.logprobs
        self._finish = output.finish

    def checked_finish(self) -> FinishReason:
        if self._finish is None:
            raise StackError("the model's answer broke off before its end")
        return self._finish

    def take_logprobs(self) -> list[TokenLogProbs] | None:
        """The token that was drawn comes first, the most likely ones after it."""
        taken, self._logprobs = self._logprobs, []
        if not taken:
            return None
        return [TokenLogProbs(logprobs_by_token={item.token: item.logprob, **item.top}) for item in taken]

    def metrics(self) -> list[MetricInResponse]:
        prompt, completion = self._prompt_tokens, self._completion_tokens
        counts = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        return [MetricInResponse(metric=name, value=count, unit="tokens") for name, count in counts.items()]
