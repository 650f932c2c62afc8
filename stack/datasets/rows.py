"""What a row is: a JSON object with the columns of its dataset's purpose. Runs in the child, too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic_core import from_json, to_json

from stack.schemas.datasets import DatasetPurpose

MAX_ROW_BYTES = 8 << 20
ROLES = ("system", "user", "assistant", "tool", "ipython")
COLUMNS: dict[str, tuple[str, ...]] = {
    "post-training/messages": ("messages",),
    "eval/question-answer": ("question", "answer"),
    "eval/messages-answer": ("messages", "answer"),
}
"""The columns that a purpose asks for. `messages` holds messages, the others text; more columns are kept."""

_SHOWN = 60  # characters of a value in a message


class BadRows(ValueError):
    """The first row that a dataset cannot have; the message names it and its column."""


def encode(
    rows: Iterable[Any], purpose: DatasetPurpose, first: int = 0, *, nan_is_null: bool = False
) -> Iterator[bytes]:
    """The rows' JSON texts, each checked. Raises BadRows, where rows are counted from `first`."""
    columns = COLUMNS[purpose]
    for index, row in enumerate(rows, first):
        if not isinstance(row, dict):
            raise BadRows(f"{place(index)}: a row is a JSON object, not {_shown(row)}")
        for column in columns:
            if column not in row:
                names = _shown(list(row))
                raise BadRows(
                    f"{place(index, column)}: is missing; {purpose} needs {' and '.join(columns)}, "
                    f"this row has {names}"
                )
            if column == "messages":
                _check_messages(row[column], index)
            elif not isinstance(row[column], str):
                raise BadRows(f"{place(index, column)}: is a text, not {_shown(row[column])}")
        yield _text(row, index, nan_is_null)


def parse(text: str | bytes, index: int) -> Any:
    """One row's JSON: no NaN, no half of a surrogate pair, at most 200 levels. Raises BadRows."""
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        reason = str(error)
        if reason.startswith("recursion limit"):
            reason = "nested too deep, at most 200 levels are read"
        raise BadRows(f"{place(index)}: not JSON: {reason}") from None


def place(index: int, column: str | None = None) -> str:
    """Where something is wrong, as all messages tell it."""
    return f"row {index} (the first is 0)" + ("" if column is None else f", column {column[:_SHOWN]!r}")


def _check_messages(value: Any, index: int) -> None:
    where = place(index, "messages")
    if not isinstance(value, list) or not value:
        raise BadRows(f"{where}: is a list of at least one message, not {_shown(value)}")
    for number, message in enumerate(value):
        if not isinstance(message, dict):
            raise BadRows(f"{where}: message {number} is an object, not {_shown(message)}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise BadRows(f"{where}: message {number} has a role of {', '.join(ROLES)}, not {_shown(role)}")
        if content is None and role == "assistant" and message.get("tool_calls"):
            continue
        if not (isinstance(content, str) or _is_item(content) or _are_items(content)):
            raise BadRows(
                f"{where}: message {number} has as content a text or items with a type, not {_shown(content)}"
            )


def _is_item(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str)


def _are_items(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_item, value))


def _text(row: dict[str, Any], index: int, nan_is_null: bool) -> bytes:
    try:
        text = to_json(row, bytes_mode="base64", inf_nan_mode="null" if nan_is_null else "constants")
        infinite = (b"Infinity" in text or b"NaN" in text) and text != to_json(
            row, bytes_mode="base64", inf_nan_mode="null"
        )
    except ValueError as error:
        raise BadRows(f"{place(index)}: is not JSON: {error}") from None
    if infinite and not nan_is_null:
        raise BadRows(f"{place(index)}: has a number beyond what JSON can say, such as 1e400 or NaN")
    if len(text) > MAX_ROW_BYTES:
        raise BadRows(f"{place(index)}: has {len(text)} bytes, at most {MAX_ROW_BYTES} are stored")
    return text


def _shown(value: Any) -> str:
    try:
        text = to_json(value).decode()
    except ValueError:
        text = type(value).__name__
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
