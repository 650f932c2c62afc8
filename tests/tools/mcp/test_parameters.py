from __future__ import annotations

from typing import Any

import pytest

from stack.engine.tool_calls.formats import checked_tools
from stack.engine.tool_calls.schema import schema_of
from stack.errors import BadRequest
from stack.schemas.messages import ToolDefinition
from stack.schemas.tools import ToolDef
from stack.tools.mcp.listing import MAX_NAME, _refusal
from stack.tools.mcp.parameters import parameters_of, type_of

ROOT = {
    "$defs": {
        "mood": {"enum": ["warm", "cold"]},
        "loop": {"$ref": "#/$defs/loop"},
        "tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
        "a/b": {"type": "integer"},
    }
}


@pytest.mark.parametrize(
    ("part", "word", "schema"),
    [
        ({"type": "string"}, "string", {"type": "string"}),
        ({"type": "integer", "minimum": 1}, "integer", {"type": "integer"}),
        ({"type": "array"}, "array", {"type": "array"}),
        (
            {"type": "array", "items": {"type": "number"}},
            "list[number]",
            {"type": "array", "items": {"type": "number"}},
        ),
        ({"type": "object", "properties": {"a": {"type": "string"}}}, "object", {"type": "object"}),
        ({"properties": {}}, "object", {"type": "object"}),
        ({"enum": ["a", "b c"]}, "Literal['a', 'b c']", {"type": "string", "enum": ["a", "b c"]}),
        ({"const": "a"}, "Literal['a']", {"type": "string", "enum": ["a"]}),
        ({"enum": ["a", "b, c"]}, "string", {"type": "string"}),
        ({"enum": [1, 2]}, "integer", {"type": "integer"}),
        (
            {"enum": ["a", None]},
            "Literal['a'] | null",
            {"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "null"}]},
        ),
        (
            {"type": ["string", "null"]},
            "string | null",
            {"anyOf": [{"type": "string"}, {"type": "null"}]},
        ),
        (
            {"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "integer"}]},
            "integer | string",
            {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        ),
        ({"oneOf": [{"type": "integer"}, {}]}, "any", {}),
        ({"allOf": [{"$ref": "#/$defs/mood"}]}, "Literal['warm', 'cold']", {"type": "string"}),
        ({"$ref": "#/$defs/a~1b"}, "integer", {"type": "integer"}),
        ({"$ref": "#/$defs/loop"}, "any", {}),
        ({"$ref": "#/$defs/none"}, "any", {}),
        ({"$ref": "https://example.org/schema"}, "any", {}),
        ({"type": "quaternion"}, "any", {}),
        ({}, "any", {}),
        (True, "any", {}),
    ],
)
def test_types_in_words_that_models_are_told(part: Any, word: str, schema: dict[str, Any]) -> None:
    assert type_of(part, ROOT) == word
    assert schema_of(word) | schema == schema_of(word)


def test_a_recursive_type_ends() -> None:
    assert type_of({"$ref": "#/$defs/tree"}, ROOT) == "list[list[array]]"


def test_parameters_with_those_that_are_required_first() -> None:
    schema = {
        "type": "object",
        "properties": {
            "b": {"type": "integer", "default": 3, "description": "how many"},
            "a": {"$ref": "#/$defs/mood", "title": "Mood"},
            "c": {"type": "string", "default": "x" * 10_000},
            "d": "nonsense",
        },
        "required": ["a", 7],
        **ROOT,
    }
    found = [(p.name, p.required, p.default, p.description) for p in parameters_of(schema)]
    assert found == [
        ("a", True, None, ""),
        ("b", False, 3, "how many"),
        ("c", False, None, ""),
        ("d", False, None, ""),
    ]
    assert parameters_of({}) == parameters_of({"properties": []}) == []


@pytest.mark.parametrize(
    "name", ["a", "a b", "a.b/c-d", "", "a=b", "a(b)", 'a"', "ä", "a\u200b", "x" * 129, "x" * MAX_NAME]
)
def test_names_are_those_that_a_model_can_be_told(name: str) -> None:
    try:
        checked_tools([ToolDefinition.model_construct(tool_name=name, description="", parameters={})])
        taken = True
    except BadRequest:
        taken = False
    assert (_refusal(ToolDef(name=name)) is None) is taken
