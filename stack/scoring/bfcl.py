"""basic::bfcl: whether function calls are those that a question asks for; `score` runs in a child process.

The rules are those of the Berkeley Function-Calling Leaderboard's check of syntax trees (Patil et al. 2025,
`ast_checker.py` of https://github.com/ShishirPatil/gorilla). A ground truth is a list of calls, each with the
values that every argument may have, where "" says that it may be left out:

    [{"area": {"base": [10], "unit": ["cm", ""]}}]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from pydantic_core import from_json

from stack.schemas.common import JsonObject
from stack.scoring.calls import Call, NoCalls, parse_calls
from stack.scoring.literals import read
from stack.scoring.scorer import ScoreRow, given, text, unscored

_TYPES: dict[str, dict[str, type]] = {
    "python": {
        "string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list,
        "dict": dict, "any": str,
    },
    "java": {
        "byte": int, "short": int, "integer": int, "long": int, "float": float, "double": float,
        "boolean": bool, "char": str, "String": str, "any": str, "Array": list, "ArrayList": list,
        "Queue": list, "Stack": list, "Set": set, "HashMap": dict, "Hashtable": dict,
    },
    "javascript": {
        "String": str, "integer": int, "float": float, "Bigint": int, "Boolean": bool, "dict": dict,
        "array": list, "any": str,
    },
}  # fmt: skip
_WITH_ITEMS = ("array", "tuple", "Array", "ArrayList")
_NOT_COMPARED = re.compile(r"[ ,./\-_*^]")


def score(rows: Sequence[JsonObject]) -> list[ScoreRow]:
    scored: list[ScoreRow] = []
    for row in rows:
        try:
            scored.append({"score": 1.0 if _right(row) else 0.0})
        except (ValueError, RecursionError) as error:
            scored.append(unscored(str(error)))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            reason = f"{type(error).__name__}: {error}"
            scored.append(unscored(f"function or ground_truth has not the form of BFCL ({reason})"))
    return scored


def _right(row: JsonObject) -> bool:
    language = str(row.get("language") or "python").lower()
    if language not in _TYPES:
        raise ValueError(f"language is Python, Java or JavaScript, not {language[:40]!r}")
    category = str(row.get("test_category") or re.sub(r"_[0-9_-]+$", "", str(row.get("id") or "")))
    answer = text(row, "generated_answer")
    try:
        calls = parse_calls(answer, language)
    except NoCalls:
        calls = []
    if "relevance" in category:
        return bool(calls) != ("irrelevance" in category)
    functions, truths = _json(row, "function"), _json(row, "ground_truth")
    functions = functions if isinstance(functions, list) else [functions]
    truths = truths if isinstance(truths, list) else [{name: truths[name]} for name in truths]
    return _matches(calls, {function["name"]: function for function in functions}, truths, language)


def _json(row: JsonObject, column: str) -> Any:
    value = given(row, column)
    if not isinstance(value, str):
        return value
    try:
        return from_json(value)
    except ValueError:
        raise ValueError(f"{column} is not JSON") from None


def _matches(calls: list[Call], functions: dict[str, Any], truths: list[Any], language: str) -> bool:
    """Whether each of the truths has a call of its own, in any order."""
    left = list(calls)
    for truth in truths:
        ((name, possible),) = truth.items()
        found = next((n for n, c in enumerate(left) if _is(c, functions[name], possible, language)), None)
        if found is None:
            return False
        del left[found]
    return not left


def _is(call: Call, function: dict[str, Any], possible: dict[str, Any], language: str) -> bool:
    name, arguments = call
    declared = function["parameters"]["properties"]
    if name != function["name"] or not arguments.keys() >= set(function["parameters"].get("required", ())):
        return False
    if not arguments.keys() <= declared.keys() & possible.keys():
        return False
    if any("" not in possible[name] for name in possible.keys() - arguments.keys()):
        return False
    return all(
        _argument_is(value, declared[name], possible[name], language) for name, value in arguments.items()
    )


def _argument_is(value: Any, declared: dict[str, Any], possible: list[Any], language: str) -> bool:
    kind = declared["type"]
    nested_kind = declared["items"]["type"] if kind in _WITH_ITEMS else None
    if language != "python":
        value = read(value, language, kind, nested_kind)
    elif kind == "tuple" and isinstance(value, tuple):
        value = list(value)
    elif kind == "float" and type(value) is int:
        value = float(value)
    expected = _TYPES[language][kind]
    nested = None if nested_kind is None else _TYPES[language][nested_kind]
    known, variable = _type(value, possible, expected, nested)
    if not known:
        return False
    if not variable:
        if expected is dict:
            return _dict_is(value, possible)
        if expected is list and nested is dict:
            return any(
                len(value) == len(each) and all(_dict_is(v, [p]) for v, p in zip(value, each, strict=True))
                for each in possible
            )
        if expected is str:
            return _plain(value) in map(_plain, possible)
        if expected is list:
            return _plain(value) in [[] if each == "" else _plain(each) for each in possible]
    return value in possible


def _type(value: Any, possible: list[Any], expected: type, nested: type | None) -> tuple[bool, bool]:
    """Whether the value's type is right, and whether it is the name of a variable in place of a value."""
    answer = next((type(each) for each in possible if each != ""), None)
    if type(value) is not expected:
        return type(value) is answer, True
    fits = nested is None or any(
        not isinstance(each, list)
        or all(_type(item, each, nested, None)[0] for item in cast("list[Any]", value))
        for each in possible
    )
    return fits, answer is not None and answer is not expected


def _dict_is(value: Any, possible: list[Any]) -> bool:
    """Whether it is one of several dictionaries, which for each key have the values that it may have."""
    return any(
        each.keys() >= value.keys()
        and all(_plain(value[key]) in map(_plain, each[key]) for key in value)
        and all("" in each[key] for key in each.keys() - value.keys())
        for each in possible
        if each != ""
    )


def _plain(value: Any) -> Any:
    """Texts but for case, spaces and punctuation, also those in a list."""
    if isinstance(value, str):
        return _NOT_COMPARED.sub("", value).lower().replace("'", '"')
    if isinstance(value, list):
        return [_plain(item) if isinstance(item, str) else item for item in value]
    return value
