"""Filters on chunks' metadata -> LanceDB's SQL, over the JSON column `attributes`.

A comparison is of values of one kind: strings with strings, numbers with numbers (1 equals 1.0), booleans and
null with themselves. A chunk without the key, or with a value of another kind, does not fit, but for `ne` and
`nin`, which are the opposites of `eq` and `in`.
"""

from __future__ import annotations

import json

from stack.errors import BadRequest
from stack.vector.params import Combination, Filter, Key, Membership, Scalar

MAX_DEPTH = 20
MAX_SQL = 1 << 20  # characters: some thousands of comparisons

_SIGNS = {"eq": "=", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def to_sql(condition: Filter) -> str:
    """A boolean expression that is never null."""
    sql = _sql(condition, 0)
    if len(sql) > MAX_SQL:
        raise BadRequest("params.filters: too many comparisons for one query; ask with fewer values")
    return sql


def _sql(condition: Filter, depth: int) -> str:
    if depth > MAX_DEPTH:
        raise BadRequest(f"params.filters: and/or are nested deeper than {MAX_DEPTH}")
    if isinstance(condition, Combination):
        parts = [_sql(part, depth + 1) for part in condition.filters]
        return f"({f' {condition.type.upper()} '.join(parts)})"
    if isinstance(condition, Membership):
        return _membership(condition)
    if condition.type == "ne":
        return f"NOT {_comparison(condition.key, 'eq', condition.value)}"
    return _comparison(condition.key, condition.type, condition.value)


def _membership(condition: Membership) -> str:
    equal = [_comparison(condition.key, "eq", value) for value in condition.value]
    one = f"({' OR '.join(equal)})" if equal else "false"
    return one if condition.type == "in" else f"NOT {one}"


def _comparison(key: Key, kind: str, value: Scalar) -> str:
    found, sign = f"json_extract(attributes, {_path(key)})", _SIGNS[kind]
    if isinstance(value, bool) or value is None:
        if kind != "eq":
            raise BadRequest(f"params.filters: {kind} compares numbers or strings, not {json.dumps(value)}")
        return f"coalesce({found} = '{json.dumps(value)}', false)"
    if isinstance(value, str):
        text = _quoted(json.dumps(value, ensure_ascii=False))
        if kind == "eq":
            return f"coalesce({found} = {text}, false)"
        body, inner = f"substr({found}, 2, character_length({found}) - 2)", text[2:-2]
        return f"coalesce({found} LIKE '\"%' AND {body} {sign} '{inner}', false)"
    return f"coalesce(TRY_CAST({found} AS DOUBLE) {sign} CAST({_number(value)} AS DOUBLE), false)"


def _path(key: Key) -> str:
    names = [key] if isinstance(key, str) else key
    for name in names:
        if any(c in name for c in '"\\') or not name.isprintable():
            raise BadRequest(
                f"params.filters: the key {name!r} has a quotation mark, backslash or control character, "
                "which a filter cannot name"
            )
    return _quoted("$" + "".join(f'."{name}"' for name in names))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _number(value: int | float) -> str:
    try:
        return repr(float(value))
    except OverflowError:
        raise BadRequest(f"params.filters: {str(value)[:20]}… is too large a number") from None
