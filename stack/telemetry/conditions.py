"""Conditions on spans' attributes: checked, and as SQL over `span_attributes`.

An attribute is found by its text or its number, whose types are never mixed: a string is `s` and its
characters, a boolean `b` and `true` or `false`, None `n`. Beside its attributes a span has `span.name`,
`span.status` and `span.duration_ms`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, func, select

from stack.errors import BadRequest
from stack.schemas.telemetry import QueryCondition
from stack.store.tables import ID_LENGTH, span_attributes, spans
from stack.telemetry.spans import SpanRecord

MAX_CONDITIONS = 20
FREQUENT = 5000
"""A condition that so many spans meet is no way to find some: newest first, the next one is near."""

_SHOWN = 150  # characters of a text that are compared by order; of a longer one a hash tells the rest apart


@dataclass(frozen=True, slots=True)
class Condition:
    """On one attribute; `column` is `text` or `number`."""

    key: str
    op: str
    column: str
    value: str | float

    def matches(self) -> ColumnElement[bool]:
        """On a row of `span_attributes`. Of another type means not equal."""
        column: ColumnElement[Any] = span_attributes.c[self.column]
        found: ColumnElement[bool]
        match self.op:
            case "eq":
                found = column == self.value
            case "ne":
                found = column.is_(None) | (column != self.value)
            case "gt":
                found = column > self.value
            case _:
                found = column < self.value
        if self.column == "text" and self.op in ("gt", "lt"):  # of texts only
            found = found & (column >= "s") & (column < "t")
        return (span_attributes.c.key == self.key) & found

    def holds(self) -> ColumnElement[bool]:
        """On a row of `spans`."""
        return exists().where(span_attributes.c.span == spans.c.id, self.matches())

    def ids(self) -> Select[int]:
        return select(span_attributes.c.span).where(self.matches())

    def count(self) -> Select[int]:
        """How many spans meet it, of `FREQUENT` at most."""
        return select(func.count()).select_from(self.ids().limit(FREQUENT).subquery())


def checked(filters: Sequence[QueryCondition] | None) -> list[Condition]:
    """Raises BadRequest for a value that cannot be compared so."""
    if filters is not None and len(filters) > MAX_CONDITIONS:
        raise BadRequest(
            f"attribute_filters has {len(filters)} conditions; at most {MAX_CONDITIONS} are taken"
        )
    return [_checked(f"attribute_filters.{number}", each) for number, each in enumerate(filters or ())]


def _checked(where: str, condition: QueryCondition) -> Condition:
    value = condition.value
    if isinstance(value, list | dict):
        raise BadRequest(
            f"{where}.value is a {type(value).__name__}: attributes are texts, numbers or booleans"
        )
    ordered = isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool))
    if condition.op in ("gt", "lt") and not ordered:
        raise BadRequest(f"{where}: {condition.op} compares texts or numbers, not {value!r}")
    text, number = columns_of(value)
    if text is not None:
        return Condition(_key(condition.key), condition.op, "text", text)
    assert number is not None
    return Condition(_key(condition.key), condition.op, "number", number)


def attribute_rows(span: int, record: SpanRecord) -> Iterator[dict[str, Any]]:
    """The rows by which a span is found."""
    own: dict[str, Any] = {"span.name": record.name, "span.status": record.status}
    if record.end_us is not None:
        own["span.duration_ms"] = (record.end_us - record.start_us) / 1000
    for key, value in (record.attributes | own).items():
        if not isinstance(value, list | dict):
            text, number = columns_of(value)
            yield {"span": span, "key": _key(key), "text": text, "number": number}


def columns_of(value: Any) -> tuple[str | None, float | None]:
    """The text and the number as which a value is found; one of them is None."""
    match value:
        case None:
            return "n", None
        case bool():
            return f"b{str(value).lower()}", None
        case int() | float():
            try:
                return None, float(value)
            except OverflowError:
                return f"i{value}"[:ID_LENGTH], None
        case _:
            return f"s{_short(str(value))}", None


def _key(key: str) -> str:
    return _short(key)


def _short(text: str) -> str:
    """NUL, which Postgres refuses, is replaced."""
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    if len(text) <= _SHOWN:
        return text
    return f"{text[:_SHOWN]}\x01{hashlib.sha256(text.encode()).hexdigest()}"
