"""Answers compared as mathematics."""

from __future__ import annotations

import time

from stack.scoring.regex_parser import MATH_PATTERNS, RegexParser
from stack.scoring.workers import Workers
from tests.scoring.test_basic import pair

EQUAL = [
    ("The final answer is: $\\boxed{\\frac{1}{2}}$", "0.5"),
    ("The final answer is $\\boxed{(x+1)^2}$. I hope it is right.", "x^2+2x+1"),
    ("so we get x = 3", "3"),
    ("$\\boxed{\\left(3,\\frac{\\pi}{2}\\right)}$", "\\left( 3, \\frac{\\pi}{2} \\right)"),
    ("$\\{1,2\\}$", "\\{2,1\\}"),
    ("Answer: 1,000", "1000"),
    ("\\boxed{5 \\text{ cm}}", "5"),
    ("We meet on $\\boxed{\\text{Friday}}$", "Friday"),
    ("It is \\boxed{2^{10}}", "The reference says $1024$."),
]
DIFFERENT = [
    ("the final answer is $\\boxed{3}$", "4"),
    ("0.333", "1/3"),
    ("the final answer is $\\boxed{x+1}$", "x-1"),
    ("I do not know", "7"),
    ("", "7"),
    ("5", "nothing that can be read as a number {{{"),
]


def parser(workers: Workers) -> RegexParser:
    return RegexParser(workers, "stack.scoring.mathematics:compare", MATH_PATTERNS, 16)


async def test_equal_and_different(workers: Workers) -> None:
    scored = await parser(workers).score_rows([pair(*each) for each in EQUAL + DIFFERENT])
    assert [row["score"] for row in scored] == [1.0] * len(EQUAL) + [0.0] * len(DIFFERENT)


async def test_hostile_expressions_are_bounded(workers: Workers) -> None:
    hostile = ["$10^{10^{10^{10}}}$", "\\boxed{" * 20_000, "(" * 100_000, "$9999999^{9999999}!$"]
    started = time.monotonic()
    scored = await parser(workers).score_rows([*(pair(each, "3") for each in hostile), pair("3", "3.0")])
    assert time.monotonic() - started < 60
    assert scored[-1] == {"score": 1.0}
    assert [row["score"] in (None, 0.0) for row in scored[:-1]] == [True] * len(hostile)
    assert scored[0]["error"] == "the row cannot be scored: it takes more than 2 s of CPU time"
