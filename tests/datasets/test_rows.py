from __future__ import annotations

import json
from typing import Any

import pytest

from stack.datasets.rows import MAX_ROW_BYTES, BadRows, encode, parse
from stack.schemas.datasets import DatasetPurpose

HI = {"role": "user", "content": "hi"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"call_id": "1"}]}


@pytest.mark.parametrize(
    ("purpose", "row"),
    [
        ("eval/question-answer", {"question": "q", "answer": "", "more": [None, {"a": 1}]}),
        ("eval/messages-answer", {"messages": [HI], "answer": "a"}),
        ("post-training/messages", {"messages": [{"role": "system", "content": "s"}, HI, CALL]}),
        ("post-training/messages", {"messages": [{"role": "ipython", "content": "1", "more": 2}]}),
        (
            "post-training/messages",
            {"messages": [{"role": "user", "content": {"type": "text", "text": "t"}}]},
        ),
        ("post-training/messages", {"messages": [{"role": "tool", "content": [{"type": "text"}]}]}),
    ],
)
def test_rows_of_a_purpose_are_kept_whole(purpose: DatasetPurpose, row: dict[str, Any]) -> None:
    (text,) = encode([row], purpose)
    assert json.loads(text) == row


@pytest.mark.parametrize(
    ("purpose", "row", "problem"),
    [
        ("eval/question-answer", {"question": "q"}, "column 'answer': is missing"),
        ("eval/question-answer", {"question": "q", "answer": 5}, "column 'answer': is a text, not 5"),
        ("eval/question-answer", {"question": None, "answer": ""}, "column 'question': is a text, not null"),
        ("eval/question-answer", [1], "a row is a JSON object, not [1]"),
        ("post-training/messages", {"messages": []}, "column 'messages': is a list of at least one"),
        ("post-training/messages", {"messages": "hi"}, 'at least one message, not "hi"'),
        ("post-training/messages", {"messages": [HI, "x"]}, 'message 1 is an object, not "x"'),
        ("post-training/messages", {"messages": [HI | {"role": "human"}]}, 'ipython, not "human"'),
        ("post-training/messages", {"messages": [HI | {"content": None}]}, "as content a text or items"),
        ("post-training/messages", {"messages": [HI | {"content": [1]}]}, "not [1]"),
        ("post-training/messages", {"messages": [HI | {"content": []}]}, "not []"),
        (
            "eval/messages-answer",
            {"messages": [HI]},
            "column 'answer': is missing; eval/messages-answer needs messages and answer",
        ),
        ("eval/question-answer", {"question": "q", "answer": "a", "x": float("inf")}, "beyond what JSON"),
        ("eval/question-answer", {"question": "q", "answer": "a" * MAX_ROW_BYTES}, "at most 8388608"),
    ],
)
def test_the_first_bad_row_is_named(purpose: DatasetPurpose, row: Any, problem: str) -> None:
    good = {"question": "q", "answer": "a", "messages": [HI]}
    with pytest.raises(BadRows, match=r"^row 7 \(the first is 0\)") as caught:
        list(encode([good, good, row, row], purpose, 5))
    assert problem in str(caught.value)


def test_the_word_infinity_is_a_text() -> None:
    (text,) = encode([{"question": "Infinity", "answer": "NaN"}], "eval/question-answer")
    assert json.loads(text)["answer"] == "NaN"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a": NaN}', "not JSON"),
        ('{"a": "\\ud800"}', "not JSON"),
        ("", "EOF"),
    ],
)
def test_what_is_not_json_is_told(text: str, problem: str) -> None:
    with pytest.raises(BadRows, match=problem):
        parse(text, 0)
