"""Function calls against ground truths, by the rules of BFCL."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stack.scoring.bfcl import score
from stack.scoring.builtin import BUILT_IN
from stack.scoring.workers import Workers

AREA = {
    "name": "geometry.area",
    "parameters": {
        "type": "dict",
        "properties": {
            "base": {"type": "integer"},
            "height": {"type": "float"},
            "unit": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "style": {"type": "dict"},
        },
        "required": ["base", "height"],
    },
}
TRUTH = {
    "geometry.area": {
        "base": [10],
        "height": [5.0],
        "unit": ["square cm", ""],
        "tags": [["A", "b"], ""],
        "style": [{"color": ["red", "blue"], "width": [2, ""]}, ""],
    }
}


def one(answer: str, truths: Any = (TRUTH,), functions: Any = (AREA,), **columns: Any) -> Any:
    row = {
        "generated_answer": answer,
        "function": json.dumps(functions),
        "ground_truth": json.dumps(truths),
        "language": "Python",
    }
    (scored,) = score([row | columns])
    return scored.get("error", scored["score"])


@pytest.mark.parametrize(
    "answer",
    [
        "[geometry.area(base=10, height=5)]",
        "geometry.area(base=10, height=5.0)",
        "[geometry.area(base=10, height=10/2, unit='Square-CM')]",
        '[geometry.area(base=10,\n height=5, tags=["a", "B"])]',
        "[geometry.area(base=10, height=5, style={'color': 'RED'})]",
        "[geometry.area({'base': 10, 'height': 5})]",
    ],
)
def test_calls_that_are_right(answer: str) -> None:
    assert one(answer) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "[geometry.area(base=10)]",
        "[area(base=10, height=5)]",
        "[geometry.area(base=11, height=5)]",
        "[geometry.area(base='10', height=5)]",
        "[geometry.area(base=10.0, height=5)]",
        "[geometry.area(base=10, height=5, depth=1)]",
        "[geometry.area(base=10, height=5, unit='metres')]",
        "[geometry.area(base=10, height=5, tags=['b', 'A'])]",
        "[geometry.area(base=10, height=5, tags=[1, 2])]",
        "[geometry.area(base=10, height=5, style={'color': 'green'})]",
        "[geometry.area(base=10, height=5, style={'width': 2})]",
        "[geometry.area(base=10, height=5), geometry.area(base=10, height=5)]",
        "I would call geometry.area.",
        "[geometry.area(base=10, height=__import__('os').getpid())]",
        "[]",
        "",
    ],
)
def test_calls_that_are_wrong(answer: str) -> None:
    assert one(answer) == 0.0


def test_an_argument_that_may_not_be_left_out() -> None:
    truth = {"geometry.area": {"base": [10], "height": [5.0], "unit": ["cm"]}}
    assert one("[geometry.area(base=10, height=5)]", [truth]) == 0.0
    assert one("[geometry.area(base=10, height=5, unit='cm')]", [truth]) == 1.0


def test_parallel_calls_in_any_order() -> None:
    other = {"geometry.area": {"base": [1], "height": [2.0]}}
    both = "[geometry.area(base=1, height=2), geometry.area(base=10, height=5)]"
    assert one(both, [TRUTH, other]) == 1.0
    assert one("[geometry.area(base=1, height=2)]", [TRUTH, other]) == 0.0
    assert one(both.replace("10", "1"), [TRUTH, other]) == 0.0


@pytest.mark.parametrize(
    ("answer", "category", "score"),
    [
        ("No function helps here.", "irrelevance", 1.0),
        ("[geometry.area(base=1, height=2)]", "live_irrelevance", 0.0),
        ("[geometry.area(base=1, height=2)]", "live_relevance", 1.0),
        ("No function helps here.", "live_relevance", 0.0),
    ],
)
def test_relevance(answer: str, category: str, score: float) -> None:
    assert one(answer, test_category=category, ground_truth=None) == score
    assert one(answer, id=f"{category}_17-3-0", ground_truth=None) == score


def function(**properties: Any) -> list[Any]:
    return [{"name": "Db.find", "parameters": {"properties": properties, "required": [*properties]}}]


@pytest.mark.parametrize(
    ("language", "literal", "declared", "value"),
    [
        ("Java", "5", {"type": "integer"}, 5),
        ("Java", "5L", {"type": "long"}, 5),
        ("Java", "2.5f", {"type": "float"}, 2.5),
        ("Java", "true", {"type": "boolean"}, True),
        ("Java", '"a, b"', {"type": "String"}, "a, b"),
        ("Java", 'new String[]{"a", "b"}', {"type": "Array", "items": {"type": "String"}}, ["a", "b"]),
        (
            "Java",
            "new ArrayList<>(Arrays.asList(1, 2))",
            {"type": "ArrayList", "items": {"type": "integer"}},
            [1, 2],
        ),
        (
            "Java",
            'new HashMap<>() {{ put("k", 1); put("l", "x"); }}',
            {"type": "HashMap"},
            {"k": [1], "l": ["x"]},
        ),
        ("JavaScript", "'a'", {"type": "String"}, "a"),
        ("JavaScript", "12n", {"type": "Bigint"}, 12),
        ("JavaScript", "[1, [2, 3]]", {"type": "array", "items": {"type": "integer"}}, [1, [2, 3]]),
        ("JavaScript", "{a: 1, 'b': 'x, y'}", {"type": "dict"}, {"a": [1], "b": ["x, y"]}),
        ("JavaScript", "handler", {"type": "any"}, "handler"),
    ],
)
def test_other_languages(language: str, literal: str, declared: Any, value: Any) -> None:
    answer, functions = f"[Db.find(x={literal})]", function(x=declared)
    right = one(answer, [{"Db.find": {"x": [value]}}], functions, language=language)
    if literal != "[1, [2, 3]]":  # BFCL checks the type of each item
        assert right == 1.0
    wrong = {"z": [1]} if isinstance(value, dict) else ["z"] if isinstance(value, list) else "zz"
    assert one(answer, [{"Db.find": {"x": [wrong]}}], functions, language=language) == 0.0


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ({"language": "Cobol"}, "language is Python, Java or JavaScript, not 'cobol'"),
        ({"function": "{"}, "function is not JSON"),
        ({"ground_truth": None}, "the row has no ground_truth"),
        ({"function": "[]"}, "has not the form of BFCL (KeyError: 'geometry.area')"),
        ({"ground_truth": "7"}, "has not the form of BFCL"),
        ({"generated_answer": 3}, "generated_answer is a text, not int"),
    ],
)
def test_rows_that_cannot_be_scored(columns: dict[str, Any], error: str) -> None:
    assert error in one("[geometry.area(base=10, height=5)]", **columns)


async def test_hostile_calls(workers: Workers) -> None:
    make = BUILT_IN["basic::bfcl"].make
    assert make is not None
    answers = ["[f(x=9**9**9**9)]", "(" * 200_000, "[f(x=" + "-" * 100_000 + "1)]", "hello"]
    rows: list[Any] = [{"generated_answer": each, "test_category": "irrelevance"} for each in answers]
    scored = await make(workers, []).score_rows(rows)
    assert "more than 0.5 s of CPU time" in str(scored[0]["error"])
    assert scored[-1] == {"score": 1.0}
    assert [row["score"] in (None, 1.0) for row in scored] == [True] * 4
