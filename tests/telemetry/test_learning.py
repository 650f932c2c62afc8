"""Spans become rows to train on."""

from __future__ import annotations

from typing import Any

import pytest

from stack.schemas.content import ImageContentItem, ImageSource, ToolCall
from stack.schemas.messages import CompletionMessage, Message, SystemMessage, ToolResponseMessage, UserMessage
from stack.telemetry.conversations import INPUT, OUTPUT, messages_of, told_input, told_output
from stack.telemetry.learning import message_rows, pair_rows
from stack.training.rows import conversation, pair

CALL = ToolCall(call_id="c1", tool_name="add", arguments={"a": 1}, arguments_json='{"a": {"b": [1]}}')


def span(span_id: str, asked: str = "hello", said: str = "ahoy", **attributes: Any) -> dict[str, Any]:
    return {
        "trace_id": f"trace of {span_id}",
        "span_id": span_id,
        "start_time": "2026-01-01T00:00:00+00:00",
        INPUT: told_input([UserMessage(content=asked)]),
        OUTPUT: told_output(said, [], "stop"),
    } | attributes


def bare(span_id: str, **attributes: Any) -> dict[str, Any]:
    return span(span_id, **{INPUT: None, OUTPUT: None} | attributes)


def test_a_conversation_comes_back() -> None:
    messages: list[Message] = [
        SystemMessage(content="Be brief."),
        UserMessage(content="1 + 1?", context="Numbers."),
        CompletionMessage(content="", stop_reason="end_of_message", tool_calls=[CALL]),
        ToolResponseMessage(call_id="c1", content="2"),
    ]
    row = span("a") | {INPUT: told_input(messages), OUTPUT: told_output("Two.", [], "stop")}
    (found,) = message_rows([row])
    assert found["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?\n\nNumbers."},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"call_id": "c1", "tool_name": "add", "arguments": {"a": {"b": [1]}}}],
        },
        {"role": "tool", "call_id": "c1", "content": "2"},
        {"role": "assistant", "content": "Two."},
    ]
    assert (found["trace_id"], found["span_id"]) == ("trace of a", "a")
    simple = span("b")
    assert conversation(next(message_rows([simple])), 0, "dialog").messages[-1].content == "ahoy"


def test_what_nothing_can_be_learned_from_is_left_out() -> None:
    picture = UserMessage(content=[ImageContentItem(image=ImageSource(data="aGk="))])
    rows = [
        bare("request"),
        span("silent", said=""),
        span("seen") | {INPUT: told_input([picture])},
    ]
    assert list(message_rows(rows)) == []
    assert messages_of(told_input([picture])) is None


@pytest.mark.parametrize(
    "told", ["no JSON", "1", "[1]", '[{"role": "user"}]', '[{"role": "user", "parts": [1]}]']
)
def test_a_clients_own_form_is_an_error(told: str) -> None:
    with pytest.raises(ValueError, match="in OpenTelemetry's form"):
        list(message_rows([span("a") | {INPUT: told}]))


def test_of_a_turn_the_last_conversation_counts() -> None:
    first = span("a", "hello", "ahoy", turn_id="t", start_time="2026-01-01T00:00:00+00:00")
    last = span("b", "hello again", "ahoy again", turn_id="t", start_time="2026-01-01T00:00:01+00:00")
    (found,) = message_rows([last, first, span("c", turn_id="other") | {OUTPUT: None}])
    assert found["span_id"] == "b"


def test_scores_of_the_span_of_its_turn_and_of_its_request() -> None:
    rows = [
        span("own", liked=1),
        span("turns", turn_id="t"),
        bare("turn", turn_id="t", liked=0.5),
        span("requests", trace_id="r"),
        bare("root", trace_id="r", liked=0.25),
        span("none"),
        span("neighbour", trace_id="shared", liked=1),
        span("other", trace_id="shared"),
    ]
    found = {row["span_id"]: row["score"] for row in message_rows(rows, "liked")}
    assert found == {"own": 1, "turns": 0.5, "requests": 0.25, "neighbour": 1}
    assert [row["span_id"] for row in message_rows(rows, "liked", 0.5)] == ["own", "turns", "neighbour"]


def test_pairs_are_the_best_and_the_worst_answer_to_a_prompt() -> None:
    rows = [
        span("a", "hello", "good", liked=3),
        span("b", "hello", "bad", liked=1),
        span("c", "hello", "fair", liked=2),
        span("d", "alone", "x", liked=2),
        span("e", "equal", "x", liked=2),
        span("f", "equal", "y", liked=2),
        span("g", "hello", "unscored"),
    ]
    (found,) = pair_rows(rows, "liked")
    assert (found["chosen"], found["rejected"]) == ("good", "bad")
    assert pair(found, 0).chosen == "good"
