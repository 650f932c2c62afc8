"""Answers found by regular expressions, which may be hostile."""

from __future__ import annotations

import time

import pytest

from stack.errors import BadRequest
from stack.scoring.regex_parser import CHOICE_PATTERNS, RegexParser
from stack.scoring.workers import Workers
from tests.scoring.test_basic import pair

HOSTILE = "(a+)+$"


def parser(workers: Workers, *patterns: str) -> RegexParser:
    return RegexParser(workers, "stack.scoring.patterns:compare", patterns or CHOICE_PATTERNS, 256)


@pytest.mark.parametrize(
    ("generated", "expected", "score"),
    [
        ("Let me think. Answer: B", "B", 1),
        ("answer :C", "C", 1),
        ("The best answer is D.", "D", 1),
        ("B", "B", 0),
        ("Answer: b", "B", 0),
        ("答案：C", "C", 1),
        ("Respuesta: A", "B", 0),
        ("الإجابة: أ", "أ", 1),
        ("Answer: A. No, answer: B", "A", 1),
    ],
)
async def test_multiple_choice(workers: Workers, generated: str, expected: str, score: float) -> None:
    assert await parser(workers).score_rows([pair(generated, expected)]) == [{"score": score}]


async def test_the_first_pattern_that_matches_decides(workers: Workers) -> None:
    rows = [pair("x=1 y=2", "2"), pair("x=1", "1"), pair("none", "1")]
    scored = await parser(workers, r"y=(\d)", r"x=(?P<X>\d)", "[0-9]{9}").score_rows(rows)
    assert [row["score"] for row in scored] == [1, 1, 0]


async def test_a_hostile_pattern_costs_no_more_than_it_may(workers: Workers) -> None:
    """Some rows are tried, alone; then the rest is not. Rows that do no harm are scored."""
    rows = [pair("a" * 40 + "b", "B"), pair("aaa", "aaa")] * 40
    started = time.monotonic()
    scored = await parser(workers, HOSTILE).score_rows(rows)
    assert time.monotonic() - started < 60
    assert scored[0] == {
        "score": None,
        "error": "the row cannot be scored: it takes more than 0.5 s of CPU time",
    }
    assert scored[1] == {"score": 1.0}
    errors = [row["error"] for row in scored if row["score"] is None]
    assert len(errors) >= 40
    assert sum("not tried: " in str(error) for error in errors) > 25


async def test_one_hostile_row_spoils_no_other(workers: Workers) -> None:
    rows = [pair("aaa", "aaa")] * 300 + [pair("a" * 40 + "b", "B")] + [pair("aaa", "aaa")] * 300
    scored = await parser(workers, HOSTILE).score_rows(rows)
    assert [index for index, row in enumerate(scored) if row["score"] != 1.0] == [300]


async def test_a_row_that_is_too_long(workers: Workers) -> None:
    scored = await parser(workers).score_rows([pair("a" * 1_000_001, "B"), pair("Answer: B", "B")])
    assert [row["score"] for row in scored] == [None, 1.0]
    assert scored[0]["error"] == "the row has more than 1,000,000 characters"


@pytest.mark.parametrize(
    ("patterns", "error"),
    [
        (["a", "(b"], r"field\.1: '\(b' is not a regular expression: missing \)"),
        ([], "field has 1 to 200 regular expressions, not 0"),
        (["a"] * 201, "not 201"),
        (["a" * 2001], "2001 characters long"),
        (["a{99999999999}"], "is not a regular expression"),
        (["(" * 900 + ")" * 900], r"too costly|is not a regular expression"),
    ],
)
async def test_patterns_that_are_none(workers: Workers, patterns: list[str], error: str) -> None:
    with pytest.raises(BadRequest, match=error):
        await workers.call("stack.scoring.patterns:check", patterns, "field")
    assert await workers.call("stack.scoring.patterns:check", ["(a)"], "field") == "(?:(?:a))"
