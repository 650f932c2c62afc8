"""Make a caller's JSON schema fit for constrained decoding, without admitting anything that it forbids.

- `$ref`s lead inside the document only.
- An object that lists its properties takes no others unless it says so (`additionalProperties`): otherwise
  a small model goes on inventing properties until its tokens run out.
- An integer without bounds has at most 18 digits, so that every JSON reader can read it.
"""

from __future__ import annotations

import json
from typing import Any

from stack.errors import BadRequest

MAX_BYTES = 256 * 1024
MAX_DEPTH = 64
MAX_INTEGER = 10**18 - 1

_MAPS_OF_SCHEMAS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_LISTS_OF_SCHEMAS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_SCHEMAS = frozenset({
    "items", "additionalItems", "additionalProperties", "unevaluatedProperties", "unevaluatedItems", "not",
    "if", "then", "else", "contains", "propertyNames", "contentSchema",
})  # fmt: skip
_COMBINED = frozenset({"anyOf", "oneOf", "allOf", "$ref", "if", "not"})
_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})


class _ObjectsAreCombined(Exception):
    """Some object is combined with others, so that closing one may contradict another."""


def prepare(schema: dict[str, Any]) -> dict[str, Any]:
    """A rewritten copy. Raises BadRequest for what can be refused without compiling."""
    try:
        size = len(json.dumps(schema, ensure_ascii=False))
    except RecursionError:
        raise BadRequest(f"json_schema: nested too deeply; the limit is {MAX_DEPTH} levels") from None
    if size > MAX_BYTES:
        raise BadRequest(f"json_schema: {size:,} characters long; the limit is {MAX_BYTES:,}")
    try:
        return _rewrite_object(schema, "#", 0, closes=True)
    except _ObjectsAreCombined:
        return _rewrite_object(schema, "#", 0, closes=False)


def _rewrite(schema: Any, path: str, depth: int, closes: bool) -> Any:
    return _rewrite_object(schema, path, depth, closes) if isinstance(schema, dict) else schema


def _rewrite_object(schema: dict[str, Any], path: str, depth: int, closes: bool) -> dict[str, Any]:
    if depth > MAX_DEPTH:
        raise BadRequest(f"json_schema: nested too deeply at {path[:80]}…; the limit is {MAX_DEPTH} levels")
    _check(schema, path)
    if closes and ("allOf" in schema or ("properties" in schema and _COMBINED & schema.keys())):
        raise _ObjectsAreCombined
    rewritten = {
        key: _rewrite_keyword(key, value, f"{path}/{key}", depth + 1, closes) for key, value in schema.items()
    }
    if closes and _is_open_record(schema):
        rewritten["additionalProperties"] = False
    if _takes_integer(schema) and not _BOUNDS & schema.keys():
        rewritten.update(minimum=-MAX_INTEGER, maximum=MAX_INTEGER)
    return rewritten


def _rewrite_keyword(key: str, value: Any, path: str, depth: int, closes: bool) -> Any:
    if key in _MAPS_OF_SCHEMAS and isinstance(value, dict):
        return {name: _rewrite(item, f"{path}/{name}", depth, closes) for name, item in value.items()}
    if key in _LISTS_OF_SCHEMAS and not isinstance(value, list):
        raise BadRequest(f"json_schema: {path} must be a list of schemas")
    if key in _LISTS_OF_SCHEMAS or (key == "items" and isinstance(value, list)):
        return [_rewrite(item, f"{path}/{number}", depth, closes) for number, item in enumerate(value)]
    return _rewrite(value, path, depth, closes) if key in _SCHEMAS else value


def _check(schema: dict[str, Any], path: str) -> None:
    ref = schema.get("$ref")
    if ref is not None and not (isinstance(ref, str) and ref.startswith("#")):
        raise BadRequest(
            f"json_schema: {path}/$ref is {str(ref)[:200]!r}; "
            "references must lead inside the schema, like #/$defs/name"
        )
    fewest = schema.get("minProperties")
    required = schema.get("required")
    if (
        isinstance(fewest, int)
        and fewest > 1
        and (not isinstance(required, list) or len(set(map(str, required))) < fewest)
    ):
        # the grammar cannot tell that two properties have the same name
        raise BadRequest(f"json_schema: {path}/minProperties above 1 needs as many names in `required`")


def _is_open_record(schema: dict[str, Any]) -> bool:
    return "properties" in schema and not {
        "additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties",
    } & schema.keys()  # fmt: skip


def _takes_integer(schema: dict[str, Any]) -> bool:
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    return "integer" in kinds and "number" not in kinds and "enum" not in schema and "const" not in schema
