from __future__ import annotations

from typing import Any

import pytest

from stack.errors import BadRequest
from stack.schemas.tools import ToolDef, ToolParameter
from stack.tools.arguments import checked


def tool(required: bool = True, **types: str) -> ToolDef:
    parameters = [
        ToolParameter(name=name, parameter_type=kind, description="", required=required)
        for name, kind in types.items()
    ]
    return ToolDef(name="t", parameters=parameters)


@pytest.mark.parametrize(
    ("kind", "given", "read"),
    [
        ("string", "a", "a"),
        ("string", 3, "3"),
        ("string", 2.5, "2.5"),
        ("string", True, "true"),
        ("integer", 3, 3),
        ("integer", "3", 3),
        ("integer", " -3 ", -3),
        ("integer", 3.0, 3),
        ("number", "2.5", 2.5),
        ("number", 7, 7),
        ("boolean", "True", True),
        ("boolean", False, False),
        ("list[integer]", ["1", 2], [1, 2]),
        ("list[integer]", "[1, 2]", [1, 2]),
        ("array", "[]", []),
        ("object", '{"a": 1}', {"a": 1}),
        ("Literal['warm', 'cold']", "WARM", "warm"),
        ("string | null", None, None),
        ("integer | string", "3", "3"),
        ("integer | null", "3", 3),
        ("any", {"x": [1]}, {"x": [1]}),
        ("", [None], [None]),
    ],
)
def test_values_are_read_as_meant(kind: str, given: Any, read: Any) -> None:
    found = checked(tool(x=kind), {"x": given})["x"]
    assert found == read
    assert type(found) is type(read)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("string", {"a": 1}),
        ("string", [1]),
        ("integer", "three"),
        ("integer", 3.5),
        ("integer", True),
        ("integer", "9" * 100),
        ("number", "NaN"),
        ("number", '"3"'),
        ("boolean", 1),
        ("list[integer]", "1"),
        ("list[integer]", ["a"]),
        ("object", "[1]"),
        ("object", "{"),
        ("Literal['warm', 'cold']", "hot"),
        ("integer | boolean", "x"),
    ],
)
def test_other_values_are_refused(kind: str, given: Any) -> None:
    with pytest.raises(BadRequest, match="x is "):
        checked(tool(x=kind), {"x": given})


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(BadRequest) as raised:
        checked(tool(a="integer", b="string", c="boolean"), {"a": "x", "c": True, "d": 1})
    assert str(raised.value) == (
        "arguments of tool 't': \"d\" is not a parameter (there are: a, b, c); "
        'a is integer, not "x"; b (string) is required'
    )


def test_null_is_left_out() -> None:
    assert checked(tool(required=False, a="integer", b="integer"), {"a": None, "b": 2, "c": None}) == {"b": 2}
    with pytest.raises(BadRequest, match="a \\(integer\\) is required"):
        checked(tool(a="integer"), {"a": None})


def test_open_ended_tools_take_more() -> None:
    assert checked(tool(a="integer"), {"a": 1, "z": [1]}, open_ended=True) == {"a": 1, "z": [1]}
