"""Arguments of a call against the parameters of its tool: read leniently, refused with what to write.

A model writes "3" where 3 is wanted, and null for what it leaves out; that much is understood.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from pydantic_core import from_json

from stack.engine.tool_calls.schema import schema_of
from stack.errors import BadRequest
from stack.schemas.common import JsonObject
from stack.schemas.tools import ToolDef

SHOWN = 60  # characters of a value in a message
SHOWN_NAMES = 20

Schema = dict[str, Any]


class Mismatch(Exception):
    """A value is not of the type, nor can be read as one."""


def checked(tool: ToolDef, arguments: JsonObject, *, open_ended: bool = False) -> JsonObject:
    """The arguments in the types of the parameters. `open_ended`: others are taken, too.

    Raises BadRequest that names all that is missing, unknown or of a wrong type.
    """
    parameters = {parameter.name: parameter for parameter in tool.parameters or []}
    others = {name: value for name, value in arguments.items() if name not in parameters}
    problems = [] if open_ended else _unknown(others, parameters)
    read: JsonObject = others if open_ended else {}
    for name, parameter in parameters.items():
        schema = schema_of(parameter.parameter_type)
        value = arguments.get(name)
        if value is None and not (name in arguments and _takes_null(schema)):
            if parameter.required and parameter.default is None:
                problems.append(f"{name} ({parameter.parameter_type}) is required")
            continue
        try:
            read[name] = _read(value, schema)
        except Mismatch:
            problems.append(f"{name} is {parameter.parameter_type}, not {_shown(value)}")
    if problems:
        raise BadRequest(f"arguments of tool {tool.name!r}: {'; '.join(problems)}")
    return read


def _unknown(others: JsonObject, parameters: Collection[str]) -> list[str]:
    """A null means nothing anyway."""
    unknown = [name for name, value in others.items() if value is not None]
    if not unknown:
        return []
    known = ", ".join(list(parameters)[:SHOWN_NAMES]) or "none"
    return [f"{_shown(name)} is not a parameter (there are: {known})" for name in unknown[:SHOWN_NAMES]]


def _takes_null(schema: Schema) -> bool:
    """Whether null is one of the type's own values, and not only a way to leave the argument out."""
    return not schema or schema.get("type") == "null" or any(map(_takes_null, schema.get("anyOf", [])))


def _read(value: Any, schema: Schema) -> Any:
    if "anyOf" in schema:
        return _read_any(value, schema["anyOf"])
    if (kind := schema.get("type")) is None:
        return value
    if "enum" in schema:
        return _read_choice(value, schema["enum"])
    if kind == "array":
        items = schema.get("items") or {}
        return [_read(item, items) for item in _parsed(value, list)]
    if kind == "object":
        return _parsed(value, dict)
    return _READERS[kind](value)


def _read_any(value: Any, options: list[Schema]) -> Any:
    """As the first type that it is of without a change, else the first that it can be read as."""
    read = []
    for option in options:
        try:
            read.append(_read(value, option))
        except Mismatch:
            continue
        if type(read[-1]) is type(value) and read[-1] == value:
            return value
    if not read:
        raise Mismatch
    return read[0]


def _read_choice(value: Any, choices: list[str]) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if text in choices:
        return text
    same = [choice for choice in choices if choice.lower() == text.strip().lower()]
    if len(same) != 1:
        raise Mismatch
    return same[0]


def _parsed(value: Any, kind: type[list[Any]] | type[dict[str, Any]]) -> Any:
    """A list or object, or its JSON text."""
    if isinstance(value, str):
        try:
            value = from_json(value, allow_inf_nan=False)
        except ValueError as error:
            raise Mismatch from error
    if not isinstance(value, kind):
        raise Mismatch
    return value


def _read_string(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    raise Mismatch


def _read_integer(value: Any) -> int:
    number = _read_number(value)
    if number != int(number):
        raise Mismatch
    return int(number)


def _read_number(value: Any) -> int | float:
    if isinstance(value, bool):
        raise Mismatch
    if isinstance(value, int | float):
        return value
    if not isinstance(value, str) or len(value) > SHOWN:
        raise Mismatch
    try:
        number = from_json(value.strip().removeprefix("+"), allow_inf_nan=False)
    except ValueError as error:
        raise Mismatch from error
    return _read_number(number if not isinstance(number, str) else None)


def _read_boolean(value: Any) -> bool:
    word = value.strip().lower() if isinstance(value, str) else value
    if word in ("true", "false"):
        return bool(word == "true")
    if not isinstance(value, bool):
        raise Mismatch
    return value


def _read_null(value: Any) -> None:
    if value is not None and value != "null":
        raise Mismatch


_READERS = {
    "string": _read_string,
    "integer": _read_integer,
    "number": _read_number,
    "boolean": _read_boolean,
    "null": _read_null,
}


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"
