"""Rows of datasets as conversations and pairs, and what cannot be one."""

from __future__ import annotations

from typing import Any

import pytest

from stack.errors import BadRequest
from stack.schemas.messages import CompletionMessage, ToolResponseMessage
from stack.training.rows import conversation, pair

USER, ASSISTANT = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}


def test_a_dialog_learns_every_answer() -> None:
    learnt = conversation({"messages": [USER, ASSISTANT, USER, ASSISTANT, USER]}, 0, "dialog")
    assert (learnt.which, [m.role for m in learnt.messages]) == (
        "all",
        ["user", "assistant", "user", "assistant", "user"],
    )


def test_instruct_learns_the_last_answer_and_reads_nothing_after_it() -> None:
    learnt = conversation({"messages": [USER, ASSISTANT, USER]}, 0, "instruct")
    assert (learnt.which, [m.role for m in learnt.messages]) == ("last", ["user", "assistant"])


@pytest.mark.parametrize("row", [{"question": "2+2?", "answer": "4"}, {"messages": [USER], "answer": "4"}])
def test_an_answer_column_is_the_last_message(row: dict[str, Any]) -> None:
    learnt = conversation(row, 0, "instruct")
    assert [message.content for message in learnt.messages] == ["2+2?", "4"]


def test_tool_calls_are_read_as_openai_writes_them_too() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "ipython", "tool_call_id": "c1", "content": "4"},
        ASSISTANT,
    ]
    learnt = conversation({"messages": messages}, 0, "dialog")
    called, answered = learnt.messages[1], learnt.messages[2]
    assert isinstance(called, CompletionMessage)
    assert called.tool_calls
    assert (called.tool_calls[0].tool_name, called.tool_calls[0].arguments) == ("add", {"a": 2})
    assert isinstance(answered, ToolResponseMessage)
    assert answered.call_id == "c1"


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"messages": [USER]}, "row 7 (the first is 0): has no message of the assistant"),
        ({"messages": [{"role": "user", "content": {"type": "no"}}, ASSISTANT]}, "message 0: user.content"),
        ({"question": "2+2?", "answer": ""}, "column 'answer': a text is needed"),
        ({}, "column 'question': a text is needed"),
    ],
)
def test_what_nothing_can_be_learned_from(row: dict[str, Any], part: str) -> None:
    with pytest.raises(BadRequest) as raised:
        conversation(row, 7, "dialog")
    assert part in str(raised.value)


def test_a_pair_has_its_chosen_answer_in_a_column_or_in_the_messages() -> None:
    column = pair({"messages": [USER], "chosen": "4", "rejected": "5"}, 0)
    message = pair({"messages": [USER, ASSISTANT], "rejected": "5"}, 0)
    assert column == message
    assert (column.chosen, column.rejected, len(column.prompt)) == ("4", "5", 1)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"messages": [USER], "rejected": "5"}, "has no chosen answer"),
        ({"messages": [USER], "chosen": "4"}, "column 'rejected': a text is needed"),
        ({"messages": [USER], "chosen": "4", "rejected": "4"}, "the same text"),
        ({"messages": [ASSISTANT], "rejected": "5"}, "a prompt ends with"),
        ({"messages": [USER, ASSISTANT], "chosen": "4", "rejected": "5"}, "a prompt ends with"),
    ],
)
def test_what_is_no_pair(row: dict[str, Any], part: str) -> None:
    with pytest.raises(BadRequest) as raised:
        pair(row, 3)
    assert str(raised.value).startswith("row 3 (the first is 0)")
    assert part in str(raised.value)
