"""A tool's parameters -> JSON schema for models to read, and grammar for their arguments to follow.

The wire type of arguments is flat: scalars, and lists and objects of scalars. So are the grammars.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from stack.schemas.messages import ToolParamDefinition

Schema = dict[str, Any]

_TYPES = {
    "string": "string", "str": "string", "text": "string",
    "integer": "integer", "int": "integer", "long": "integer",
    "number": "number", "float": "number", "double": "number", "decimal": "number",
    "boolean": "boolean", "bool": "boolean",
    "array": "array", "list": "array", "tuple": "array", "set": "array", "sequence": "array",
    "object": "object", "dict": "object", "map": "object", "mapping": "object", "json": "object",
    "null": "null", "none": "null",
}  # fmt: skip
_GENERIC = re.compile(r"\s*([\w.]+)\s*[\[<(](.*)[\]>)]\s*$", re.DOTALL)
_ARRAY_OF = re.compile(r"\s*(?:array|list)\s+of\s+(\w+?)s?\s*$", re.IGNORECASE)

MAX_INTEGER = 10**18 - 1
MAX_NUMBER = 10**15  # bounds also rule out exponents, and so numbers that no float can hold
_SCALAR: Schema = {
    "anyOf": [
        {"type": "string"},
        {"type": "number", "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER},
        {"type": "boolean"},
        {"type": "null"},
    ]
}


def schema_of(param_type: str) -> Schema:
    """JSON Schema of a JSON Schema type ("integer") or a Python one ("list[int]", "Optional[str]").

    Any other type admits every value and comes back as {}.
    """
    options = [option for option in _split(param_type, "|") if option]
    if len(options) > 1:
        return _any_of([schema_of(option) for option in options])
    if match := _ARRAY_OF.match(param_type):
        return {"type": "array", "items": schema_of(match[1])}
    if match := _GENERIC.match(param_type):
        return _generic(match[1].rpartition(".")[2].lower(), match[2])
    kind = _TYPES.get(param_type.strip().rpartition(".")[2].lower())
    return {"type": kind} if kind else {}


def _generic(outer: str, inner: str) -> Schema:
    parts = _split(inner, ",")
    if outer == "optional":
        return _any_of([schema_of(inner), {"type": "null"}])
    if outer == "union":
        return _any_of([schema_of(part) for part in parts])
    if outer == "literal":
        values = [part.strip().strip("'\"") for part in parts]
        return {"type": "string", "enum": values} if all(values) else {}
    kind = _TYPES.get(outer)
    if kind == "array" and len({part for part in parts if part != "..."}) == 1:
        return {"type": "array", "items": schema_of(parts[0])}
    return {"type": kind} if kind else {}


def _split(text: str, separator: str) -> list[str]:
    """At separators outside of brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "[<(") - (char in "]>)")
        if char == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def _any_of(options: list[Schema]) -> Schema:
    return {} if {} in options else {"anyOf": options}


def describe(parameters: Mapping[str, ToolParamDefinition]) -> Schema:
    """The schema of a tool's arguments, as models and people read it."""
    properties = {}
    for name, parameter in parameters.items():
        properties[name] = schema_of(parameter.param_type)
        if parameter.description:
            properties[name]["description"] = parameter.description
        if parameter.default is not None:
            properties[name]["default"] = parameter.default
    return {"type": "object", "properties": properties, "required": required(parameters)}


def required(parameters: Mapping[str, ToolParamDefinition]) -> list[str]:
    return [name for name, parameter in parameters.items() if parameter.required]


def strict(parameters: Mapping[str, ToolParamDefinition]) -> Schema:
    """The schema that arguments are decoded with: what the wire can carry, nothing undeclared."""
    return {
        "type": "object",
        "properties": {name: _flat(schema_of(item.param_type)) for name, item in parameters.items()},
        "required": required(parameters),
        "additionalProperties": False,
    }


def _flat(schema: Schema) -> Schema:
    if "anyOf" in schema:
        return {"anyOf": [_flat(option) for option in schema["anyOf"]]}
    match schema.get("type"):
        case None:
            return {"anyOf": [*_SCALAR["anyOf"], _flat({"type": "array"}), _flat({"type": "object"})]}
        case "array":
            items = _flat(schema["items"]) if schema.get("items") else _SCALAR
            return {"type": "array", "items": items if _is_scalar(items) else _SCALAR}
        case "object":
            return {"type": "object", "additionalProperties": _SCALAR}
        case "integer":
            return {"type": "integer", "minimum": -MAX_INTEGER, "maximum": MAX_INTEGER}
        case "number":
            return {"type": "number", "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER}
    return schema


def _is_scalar(schema: Schema) -> bool:
    if "anyOf" in schema:
        return all(_is_scalar(option) for option in schema["anyOf"])
    return schema.get("type") not in ("array", "object", None)


# Python's way of writing arguments, in Lark.

PYTHON_RULES = r"""
STRING: /"([^"\\\x00-\x1f\x7f]|\\["\\nrt])*"/
INTEGER: /-?(0|[1-9][0-9]{0,17})/
NUMBER: /-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?/
BOOLEAN: "True" | "False"
NULL: "None"
scalar: STRING | NUMBER | BOOLEAN | NULL
COMMA: /, ?/
list: "[" (scalar (COMMA scalar)*)? "]"
dict: "{" (pair (COMMA pair)*)? "}"
pair: STRING /: ?/ scalar
"""


def python_arguments(rule: str, parameters: Mapping[str, ToolParamDefinition]) -> list[str]:
    """Lark rules for `name=value, …`: in the order of definition, optional ones left out or not."""
    lines, names = [], list(parameters)
    for number in reversed(range(len(names))):
        parameter = parameters[names[number]]
        value = _python_value(_flat(schema_of(parameter.param_type)))
        written = f"{literal(names[number] + '=')} ({value})"
        last = number == len(names) - 1
        for part, comma in (("first", ""), ("rest", "COMMA ")):
            after = "" if last else f" {rule}_rest_{number + 1}"
            skipped = '""' if last else f"{rule}_{part}_{number + 1}"
            options = [f"{comma}{written}{after}", *([] if parameter.required else [skipped])]
            lines.append(f"{rule}_{part}_{number}: {' | '.join(options)}")
    return [f"{rule}: {f'{rule}_first_0' if names else literal('')}", *reversed(lines)]


def _python_value(schema: Schema) -> str:
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_python_value(option) for option in schema["anyOf"]))
    if "enum" in schema:
        return " | ".join(literal(json.dumps(value, ensure_ascii=False)) for value in schema["enum"])
    if schema["type"] == "array":
        item = _python_value(schema["items"])
        return f'"[" (({item}) (COMMA ({item}))*)? "]"'
    kind = str(schema["type"])
    return "dict" if kind == "object" else kind.upper()


def literal(text: str) -> str:
    """A string of Lark."""
    return json.dumps(text, ensure_ascii=False)
