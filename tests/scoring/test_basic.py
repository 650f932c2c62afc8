"""The functions of one row: equality, subset_of and docvqa."""

from __future__ import annotations

import time
from typing import Any

import pytest

from stack.errors import BadRequest
from stack.scoring.builtin import BUILT_IN
from stack.scoring.scorer import Scorer, check_columns
from stack.scoring.workers import Workers


def scorer(name: str, workers: Workers) -> Scorer:
    make = BUILT_IN[name].make
    assert make is not None
    return make(workers, [*BUILT_IN[name].patterns])


def pair(generated: Any, expected: Any) -> dict[str, Any]:
    return {"generated_answer": generated, "expected_answer": expected}


@pytest.mark.parametrize(
    ("name", "generated", "expected", "score"),
    [
        ("basic::equality", "Paris", "Paris", 1),
        ("basic::equality", "paris", "Paris", 0),
        ("basic::equality", {"a": [1, None]}, {"a": [1, None]}, 1),
        ("basic::equality", "1", 1, 0),
        ("basic::subset_of", "It is Paris.", "Paris", 1),
        ("basic::subset_of", "Paris", "It is Paris.", 0),
        ("basic::docvqa", "The ITC Limited!", '["itc limited", "ITC"]', 1),
        ("basic::docvqa", "two", ["2", "three"], 1),
        ("basic::docvqa", "$1,000", '["$1000"]', 1),
        ("basic::docvqa", "3.5", '["35"]', 0),
        ("basic::docvqa", "dont know", '["don\'t know"]', 1),
        ("basic::docvqa", "1st place", '["First Place"]', 1),
        ("basic::docvqa", "second", '["first"]', 0),
        ("basic::docvqa", "anything", "[]", 0),
    ],
)
async def test_scores(workers: Workers, name: str, generated: Any, expected: Any, score: float) -> None:
    assert await scorer(name, workers).score_rows([pair(generated, expected)]) == [{"score": score}]


@pytest.mark.parametrize(
    ("name", "row", "error"),
    [
        ("basic::equality", {"generated_answer": "a"}, "the row has no expected_answer"),
        ("basic::equality", pair(None, "a"), "the row has no generated_answer"),
        ("basic::subset_of", pair(5, "5"), "generated_answer is a text, not int"),
        ("basic::docvqa", pair("a", "a"), "expected_answer is a JSON list of texts"),
        ("basic::docvqa", pair("a", [1]), "expected_answer is a JSON list of texts"),
        ("basic::docvqa", pair("a", "[" * 100_000), "expected_answer is a JSON list of texts"),
    ],
)
async def test_a_row_that_cannot_be_scored(
    workers: Workers, name: str, row: dict[str, Any], error: str
) -> None:
    """It says why, and the others are scored."""
    good = pair("a", '["a"]' if name == "basic::docvqa" else "a")
    first, bad, last = await scorer(name, workers).score_rows([good, row, good])
    assert first == last == {"score": 1.0}
    assert bad["score"] is None
    assert error in str(bad["error"])


async def test_columns_that_no_row_has(workers: Workers) -> None:
    equality = scorer("basic::equality", workers)
    check_columns("mine", equality, [])
    check_columns("mine", equality, [{"generated_answer": "a"}, {"expected_answer": "a"}])
    with pytest.raises(
        BadRequest, match=r"'mine' reads .* no row has expected_answer; the first row has gen"
    ):
        check_columns("mine", equality, [{"generated_answer": "a"}, {"expected_answer": None}])


async def test_equality_is_quick(workers: Workers) -> None:
    """A million rows take about a second; the bound leaves room for a machine that is busy."""
    rows = [pair("answer" * 5, "answer" * 5) for _ in range(100_000)]
    started = time.process_time()
    scored = await scorer("basic::equality", workers).score_rows(rows)
    assert time.process_time() - started < 0.5
    assert len(scored) == 100_000
