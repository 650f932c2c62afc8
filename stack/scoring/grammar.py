"""A regular expression of Python's -> one of the constrained decoder's, which knows fewer things.

It need not allow all that matches, only enough: repetitions are bounded, so that a model comes to an end,
and classes are of ASCII.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any

FREE_CHARS = 2000
"""Of reasoning, before a pattern that has a mark such as `Score: ` by which it is found."""

_MANY, _ANYTHING = 20, 300  # repetitions where the pattern has no bound: of a class, of nearly any character
_CLASSES = {"CATEGORY_DIGIT": "0-9", "CATEGORY_WORD": "A-Za-z0-9_", "CATEGORY_SPACE": r" \n"}
_EDGES = {"AT_BEGINNING", "AT_BEGINNING_STRING", "AT_END", "AT_END_STRING", "AT_BOUNDARY"}


class _Unknown(Exception):
    """Something that is not regular, or that the decoder has no word for."""


def grammar_of(patterns: Sequence[str]) -> str | None:
    """A regular expression whose every text has a match of a pattern; None: some pattern allows none."""
    try:
        return "|".join(f"(?:{_whole(pattern)})" for pattern in patterns)
    except (_Unknown, ImportError, RecursionError):
        return None


def _whole(pattern: str) -> str:
    parser: Any = importlib.import_module("re._parser")  # Python's own, which has no public name
    parsed = parser.parse(pattern)
    items = list(parsed)
    anchored = bool(items) and str(items[0][0]) == "AT" and str(items[0][1]) != "AT_BOUNDARY"
    for end in (0, -1):
        if items and str(items[end][0]) == "AT" and str(items[end][1]) in _EDGES:
            del items[end]
    text = _sequence(items, bool(parsed.state.flags & re.DOTALL))
    if parsed.state.flags & re.IGNORECASE:
        text = f"(?i:{text})"
    marked = sum(str(op) == "LITERAL" and chr(value).isalnum() for op, value in items) >= 2
    free = marked and not anchored and parsed.state.groups > 1
    return f"(?s:.{{0,{FREE_CHARS}}}){text}" if free else text


def _sequence(items: Sequence[Any], dotall: bool) -> str:
    return "".join(_item(str(op), value, dotall) for op, value in items)


def _item(op: str, value: Any, dotall: bool) -> str:
    match op:
        case "LITERAL":
            return _escape(value)
        case "NOT_LITERAL":
            return rf"[^{_escape(value)}\n]"
        case "ANY":
            return "(?s:.)" if dotall else r"[^\n]"
        case "IN":
            return _class(value)
        case "BRANCH":
            return f"(?:{'|'.join(_sequence(list(part), dotall) for part in value[1])})"
        case "SUBPATTERN":
            _, added, removed, part = value
            if removed or added & ~re.IGNORECASE:
                raise _Unknown
            flags = "i" if added & re.IGNORECASE else ""
            return f"(?{flags}:{_sequence(list(part), dotall)})"
        case "MAX_REPEAT" | "MIN_REPEAT":
            least, most, part = value
            wide = any(str(inner) in ("ANY", "NOT_LITERAL") for inner, _ in part)
            most = min(int(most), least + (_ANYTHING if wide else _MANY))
            return f"(?:{_sequence(list(part), dotall)}){{{least},{most}}}"
    raise _Unknown


def _class(items: Sequence[Any]) -> str:
    negated = str(items[0][0]) == "NEGATE"
    parts = []
    for op, value in items[1:] if negated else items:
        match str(op):
            case "LITERAL":
                parts.append(_escape(value))
            case "RANGE":
                parts.append(f"{_escape(value[0])}-{_escape(value[1])}")
            case "CATEGORY" if str(value) in _CLASSES:
                parts.append(_CLASSES[str(value)])
            case _:
                raise _Unknown
    return rf"[^{''.join(parts)}\n]" if negated else f"[{''.join(parts)}]"


def _escape(code: int) -> str:
    character = chr(code)
    if character.isalnum() or character == " " or not character.isascii():
        return character
    return rf"\x{code:02x}" if character != "\n" else r"\n"
