"""Answers compared as mathematics, by math-verify over SymPy; runs in a child process.

math-verify ends long computations by signals, which only reach a main thread; here the process is bounded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from math_verify import parse, verify  # type: ignore[import-untyped]

from stack.scoring.patterns import first_match

for _library in ("math_verify", "latex2sympy2_extended"):  # they warn, e.g. that timeouts are off
    logging.getLogger(_library).setLevel(logging.CRITICAL + 1)

_MARKUP = ("$", "\\boxed", "\\(", "\\[")


def compare(items: Sequence[tuple[str, str]], patterns: Sequence[str]) -> list[dict[str, float]]:
    """Of texts and the answers that are expected in them: 1 if they are equal.

    What no pattern finds is looked for in the whole text: the last boxed expression, or the last one at all.
    """
    return [
        {"score": 1.0 if equal(first_match(generated, patterns), generated, expected) else 0.0}
        for generated, expected in items
    ]


def equal(answer: str | None, generated: str, expected: str) -> bool:
    if (answer if answer is not None else generated).strip() == expected.strip():
        return True
    gold = _read(expected)
    found = _read(answer) if answer is not None else _parse(generated)
    return bool(gold and found and verify(gold, found, timeout_seconds=None))


def _read(answer: str) -> list[Any]:
    """An answer by itself, which need not be marked as mathematics."""
    if any(mark in answer for mark in _MARKUP):
        return _parse(answer)
    return _parse(rf"\boxed{{{answer}}}") or _parse(answer)


def _parse(text: str) -> list[Any]:
    found: list[Any] = parse(text, parsing_timeout=None)
    return found
