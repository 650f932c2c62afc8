from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from stack.errors import BadRequest
from stack.schemas.messages import Message
from stack.synthetic.dialogs import split

PARSER: TypeAdapter[list[Message]] = TypeAdapter(list[Message])


def messages(text: str) -> list[Message]:
    """S, u and a with a number: system, user and assistant."""
    roles = {"S": "system", "u": "user", "a": "assistant"}
    return PARSER.validate_python(
        [
            {"role": roles[word[0]], "content": word}
            | ({"stop_reason": "end_of_turn"} if word[0] == "a" else {})
            for word in text.split()
        ]
    )


def shown(dialogs: list[list[Message]]) -> list[str]:
    return [" ".join(str(message.content) for message in dialog) for dialog in dialogs]


@pytest.mark.parametrize(
    ("given", "dialogs"),
    [
        ("", []),
        ("u1", ["u1"]),
        ("u1 u2", ["u1", "u2"]),
        ("u1 a1 u2", ["u1 a1 u2"]),
        ("u1 a1 u2 u3", ["u1 a1 u2", "u3"]),
        ("S1 u1 u2 a2 u3", ["S1 u1", "S1 u2 a2 u3"]),
        ("S1 u1 S2 u2 u3", ["S1 u1", "S2 u2", "S2 u3"]),
        ("u1 S1 u2", ["u1", "S1 u2"]),
        ("S1", []),
    ],
)
def test_split(given: str, dialogs: list[str]) -> None:
    assert shown(split(messages(given))) == dialogs


@pytest.mark.parametrize(
    ("given", "reason"),
    [("a1", "begins with"), ("S1 a1 u1", "begins with"), ("u1 u2 a2", "dialog 1 .* ends with an answer")],
)
def test_refused(given: str, reason: Any) -> None:
    with pytest.raises(BadRequest, match=reason):
        split(messages(given))
