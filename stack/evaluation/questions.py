"""A row of a dataset -> what a candidate is asked, and what scoring functions read."""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json

from stack.errors import BadRequest

Row = dict[str, Any]

ASKED = ("completion_input", "chat_completion_input", "messages", "question", "input_query")
"""The columns that may hold what is asked; the first that a row has is taken."""


def completion_of(row: Row) -> str | None:
    """A text that the model is to go on with, as it is, without a chat template."""
    text = row.get("completion_input")
    return text if isinstance(text, str) else None


def messages_of(row: Row) -> list[Row]:
    """The conversation that a candidate is to answer. Raises BadRequest for a row that asks nothing."""
    for column in ("chat_completion_input", "messages"):
        if (value := row.get(column)) is not None:
            return [_message(each, column) for each in _listed(value, column)]
    for column in ("question", "input_query"):
        if isinstance(text := row.get(column), str):
            return [{"role": "user", "content": text}]
    raise BadRequest(
        f"a row asks by one of the columns {', '.join(ASKED)}; this one has {', '.join(row)[:200]}"
    )


def _listed(value: Any, column: str) -> list[Any]:
    """Messages as such, or as JSON text."""
    if isinstance(value, str):
        try:
            value = from_json(value, allow_inf_nan=False)
        except ValueError:
            raise BadRequest(f"{column} is a list of messages, or its JSON") from None
    if not isinstance(value, list) or not value:
        raise BadRequest(f"{column} is a list of at least one message")
    return value


def _message(value: Any, column: str) -> Row:
    if not isinstance(value, dict) or "role" not in value:
        raise BadRequest(f"{column}: a message is an object with a role and a content")
    message = {key: each for key, each in value.items() if each is not None}
    return {"stop_reason": "end_of_turn"} | message if message["role"] == "assistant" else message


def scored_row(row: Row, answer: str) -> Row:
    """What scoring functions read: the row's own columns, with those that they know by other names."""
    asked = row.get("question")
    if asked is None and (completion := completion_of(row)) is not None:
        asked = completion
    if asked is None:
        asked = _last_text(row)
    also = {"input_query": asked, "expected_answer": row.get("answer")}
    return (
        {key: value for key, value in also.items() if value is not None} | row | {"generated_answer": answer}
    )


def _last_text(row: Row) -> str | None:
    """What the user said last."""
    try:
        content = messages_of(row)[-1].get("content")
    except BadRequest:
        return None
    return content if isinstance(content, str) else None
