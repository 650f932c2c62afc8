from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from stack.engine.fold import fold_chat_completion, fold_completion
from stack.errors import StackError
from stack.schemas.content import ToolCall
from stack.schemas.inference import CompletionResponseStreamChunk, MetricInResponse, TokenLogProbs
from tests.api.fake import complete, progress, start, tool


async def stream(*chunks: Any) -> AsyncIterator[Any]:
    for chunk in chunks:
        yield chunk


def logprobs(*tokens: str) -> list[TokenLogProbs]:
    return [TokenLogProbs(logprobs_by_token={token: -0.5}) for token in tokens]


async def test_completion() -> None:
    metrics = [MetricInResponse(metric="total_tokens", value=3)]
    answer = await fold_completion(
        stream(
            CompletionResponseStreamChunk(delta="a", logprobs=logprobs("a")),
            CompletionResponseStreamChunk(delta="bc", logprobs=logprobs("b", "c")),
            CompletionResponseStreamChunk(delta="", stop_reason="end_of_turn", metrics=metrics),
        )
    )
    assert (answer.content, answer.stop_reason, answer.metrics) == ("abc", "end_of_turn", metrics)
    assert answer.logprobs == logprobs("a", "b", "c")


async def test_chat_completion() -> None:
    calls = [ToolCall(call_id=n, tool_name="f", arguments={}, arguments_json="{}") for n in "12"]
    answer = await fold_chat_completion(
        stream(
            start(),
            progress("I will ", logprobs=logprobs("I", " will")),
            tool("", "started"),
            tool('{"name": "f"', "in_progress"),
            tool(calls[0]),
            tool(calls[1]),
            complete("end_of_message"),
        )
    )
    message = answer.completion_message
    assert (message.content, message.stop_reason) == ("I will ", "end_of_message")
    assert message.tool_calls == calls
    assert answer.logprobs == logprobs("I", " will")
    assert answer.metrics == [MetricInResponse(metric="total_tokens", value=7)]


async def test_a_call_that_could_not_be_parsed_stays_readable() -> None:
    answer = await fold_chat_completion(stream(start(), progress("x "), tool("f(1", "failed"), complete()))
    assert (answer.completion_message.content, answer.completion_message.tool_calls) == ("x f(1", None)


async def test_a_stream_without_an_end_is_an_error() -> None:
    with pytest.raises(StackError, match="broke off"):
        await fold_completion(stream(CompletionResponseStreamChunk(delta="a")))
