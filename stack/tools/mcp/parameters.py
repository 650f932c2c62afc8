"""A tool's JSON Schema -> parameters in the words that `stack.engine.tool_calls.schema.schema_of` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from stack.schemas.tools import ToolParameter

MAX_DEPTH = 6  # of references, options and lists within each other: a recursive schema ends there
MAX_OPTIONS = 8
MAX_CHOICES = 64
MAX_TYPE_CHARS = 2_000
MAX_DESCRIPTION_CHARS = 2_000
MAX_DEFAULT_CHARS = 2_000

ANY = "any"
_TYPES = frozenset({"string", "integer", "number", "boolean", "array", "object", "null"})
_PLAIN = re.compile(r"[^,'\"\[\]<>()|\\\s](?:[^,'\"\[\]<>()|\\\n]*[^,'\"\[\]<>()|\\\s])?")

Schema = Mapping[str, Any]


def parameters_of(schema: Schema) -> list[ToolParameter]:
    """One for each property of the schema's object, those that are required first."""
    root = _resolved(schema, schema, MAX_DEPTH)
    properties = root.get("properties")
    required = root.get("required")
    names = required if isinstance(required, list) else []
    if not isinstance(properties, Mapping):
        return []
    found = [
        _parameter(name, part if isinstance(part, Mapping) else {}, name in names, schema)
        for name, part in properties.items()
    ]
    return sorted(found, key=lambda parameter: not parameter.required)


def _parameter(name: str, part: Schema, required: bool, root: Schema) -> ToolParameter:
    resolved = _resolved(part, root, MAX_DEPTH)
    description = part.get("description") or resolved.get("description") or resolved.get("title")
    return ToolParameter(
        name=name,
        parameter_type=type_of(part, root),
        description=description[:MAX_DESCRIPTION_CHARS] if isinstance(description, str) else "",
        required=required,
        default=_default(part.get("default")),
    )


def _default(value: Any) -> Any:
    return value if value is not None and len(json.dumps(value)) <= MAX_DEFAULT_CHARS else None


def type_of(part: Schema, root: Schema) -> str:
    """E.g. `integer`, `list[string]`, `Literal['a', 'b']`, `string | null`; `any` for what has no word."""
    word = _type(part, root, MAX_DEPTH)
    return word if len(word) <= MAX_TYPE_CHARS else ANY


def _type(part: Any, root: Schema, depth: int) -> str:
    if not isinstance(part, Mapping) or depth == 0:
        return ANY
    if "$ref" in part:
        return _type(_target(part["$ref"], root), root, depth - 1)
    if "const" in part:
        return _choice([part["const"]])
    if isinstance(part.get("enum"), list):
        return _choice(part["enum"])
    for key in ("anyOf", "oneOf"):
        if isinstance(part.get(key), list):
            return _union([_type(option, root, depth - 1) for option in part[key][:MAX_OPTIONS]])
    if isinstance(part.get("allOf"), list) and "type" not in part:
        words = {_type(option, root, depth - 1) for option in part["allOf"][:MAX_OPTIONS]} - {ANY}
        return words.pop() if len(words) == 1 else ANY
    kind = part.get("type")
    if isinstance(kind, list):
        return _union([_type({**part, "type": one}, root, depth - 1) for one in kind[:MAX_OPTIONS]])
    if kind == "array":
        items = _type(part.get("items"), root, depth - 1)
        return "array" if items == ANY else f"list[{items}]"
    if kind is None and "properties" in part:
        return "object"
    return kind if isinstance(kind, str) and kind in _TYPES else ANY


def _choice(values: list[Any]) -> str:
    """Texts that can be written in a Literal; of other values only what kind they are."""
    if not values or len(values) > MAX_CHOICES:
        return ANY if not values else _union([_kind(value) for value in values])
    texts = [value for value in values if isinstance(value, str) and _PLAIN.fullmatch(value)]
    others = [_kind(value) for value in values if not isinstance(value, str)]
    if len(texts) + len(others) < len(values):
        return _union(["string", *others])
    literal = ["Literal[" + ", ".join(f"'{text}'" for text in texts) + "]"] if texts else []
    return _union([*literal, *others])


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def _union(words: list[str]) -> str:
    return ANY if ANY in words or not words else " | ".join(dict.fromkeys(words))


def _resolved(part: Any, root: Schema, depth: int) -> Schema:
    """What a chain of references leads to."""
    while isinstance(part, Mapping) and "$ref" in part and depth > 0:
        part, depth = _target(part["$ref"], root), depth - 1
    return part if isinstance(part, Mapping) else {}


def _target(reference: Any, root: Schema) -> Any:
    """What `#/…` points to in the schema (RFC 6901); None for everything else."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    node: Any = root
    for part in unquote(reference[1:]).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        else:
            node = node.get(key) if isinstance(node, Mapping) else None
    return node
