"""Java's and JavaScript's literals -> Python's values, by declared types; a text that is none stays a text.

The types and their forms are those of the Berkeley Function-Calling Leaderboard; see `stack.scoring.bfcl`.
"""

from __future__ import annotations

import re
from typing import Any

from stack.scoring.calls import NoCalls, split, unquoted

_INTEGER, _NUMBER = r"-?\d{1,400}", r"-?\d{1,400}(\.\d{1,400})?"
_EXPONENT = r"([eE][+-]?\d{1,4})?"
_FORMS: dict[str, dict[str, tuple[str, type[int] | type[float]]]] = {
    "java": {
        "byte": (_INTEGER, int),
        "short": (_INTEGER, int),
        "integer": (_INTEGER, int),
        "long": (f"{_INTEGER}[lL]", int),
        "float": (f"{_NUMBER}{_EXPONENT}[fF]", float),
        "double": (f"{_NUMBER}{_EXPONENT}", float),
    },
    "javascript": {
        "integer": (_INTEGER, int),
        "float": (_NUMBER, float),
        "Bigint": (f"{_INTEGER}n", int),
    },
}
_JAVA_LIST = re.compile(
    r"new\s+(?:ArrayList\s*<[^()]*>\s*\(\s*Arrays\.asList\((?P<list>.*)\)\s*\)"
    r"|\w+\s*\[\]\s*\{(?P<array>.*)\}"
    r"|ArrayList\s*<[^()]*>\s*\(\s*\)\s*(?:\{\{(?P<adds>.*)\}\})?)",
    re.DOTALL,
)
_JAVA_MAP = re.compile(r"new\s+HashMap\s*<[^()]*>\s*\(\s*\)\s*(?:\{\s*\{?(?P<puts>.*?)\}?\s*\})?", re.DOTALL)
_JS_ARRAY = re.compile(r"\[(?P<list>.*)\]|new\s+Array\((?P<array>.*)\)", re.DOTALL)


def read(text: str, language: str, kind: str, nested: str | None = None) -> Any:
    """The value of a literal of a type `kind`, whose items are of the type `nested`."""
    form = _FORMS[language].get(kind)
    if form is not None:
        pattern, number = form
        return number(text.rstrip("lLfFn")) if re.fullmatch(pattern, text) else text
    match kind:
        case "boolean" | "Boolean":
            return text == "true" if text in ("true", "false") else text
        case "Array" | "ArrayList" | "array":
            items = _java_items(text) if language == "java" else _js_items(text)
            return text if items is None else [_item(item, language, nested) for item in items]
        case "HashMap":
            return _java_map(text)
        case "dict":
            return _js_value(text)
    return text


def _item(text: str, language: str, nested: str | None) -> Any:
    if nested is None or (language == "javascript" and text.startswith("[")):
        return _java_value(text) if language == "java" else _js_value(text)
    if nested in ("String", "char"):
        return unquoted(text)
    return read(text, language, nested)


def _java_items(text: str) -> list[str] | None:
    match = _JAVA_LIST.fullmatch(text.strip())
    if match is None:
        return None
    try:
        if match["adds"] is not None:
            return [argument for call in split(match["adds"], ";") for argument in _arguments(call, "add")]
        return [item.strip() for item in split(match["list"] or match["array"] or "", ",")]
    except NoCalls:
        return None


def _java_map(text: str) -> Any:
    match = _JAVA_MAP.fullmatch(text.strip())
    if match is None:
        return text
    try:
        pairs = [_arguments(call, "put") for call in split(match["puts"] or "", ";")]
        return {unquoted(key): _java_value(value) for key, value in filter(None, pairs)}
    except ValueError:
        return text


def _arguments(code: str, method: str) -> list[str]:
    """Of a call of the method; none when it is something else."""
    match = re.fullmatch(rf"\s*{method}\s*\((.*)\)\s*", code, re.DOTALL)
    return [argument.strip() for argument in split(match[1], ",")] if match else []


def _java_value(text: str) -> Any:
    return _plain_value(text, re.sub(r"(?<=\d)[lLfF]$", "", text))


def _js_items(text: str) -> list[str] | None:
    match = _JS_ARRAY.fullmatch(text.strip())
    if match is None:
        return None
    try:
        return [item.strip() for item in split(match["list"] or match["array"] or "", ",")]
    except NoCalls:
        return None


def _js_value(text: str) -> Any:
    text = text.strip()
    if (items := _js_items(text)) is not None:
        return [_js_value(item) for item in items]
    if text.startswith("{") and text.endswith("}"):
        try:
            pairs = [pair.partition(":") for pair in split(text[1:-1], ",")]
        except NoCalls:
            return text
        return {unquoted(key.strip()): _js_value(value) for key, _, value in pairs}
    return _plain_value(text, text)


def _plain_value(text: str, number: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(_INTEGER, number):
        return int(number)
    if re.fullmatch(_NUMBER + _EXPONENT, number):
        return float(number)
    return unquoted(text)
