"""Regular expressions of callers, in Python's syntax; runs in a child, since they may backtrack for ever."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

from stack.scoring.grammar import grammar_of

MAX_PATTERNS, MAX_PATTERN_CHARS = 200, 2000


def check(patterns: Sequence[str], field: str) -> str | None:
    """Raises ValueError for the first one that is no pattern.

    Returns a regular expression that makes a model write what one of them matches; None: there is none.
    """
    if not patterns or len(patterns) > MAX_PATTERNS:
        raise ValueError(f"{field} has 1 to {MAX_PATTERNS} regular expressions, not {len(patterns)}")
    for number, pattern in enumerate(patterns):
        where = f"{field}.{number}"
        if len(pattern) > MAX_PATTERN_CHARS:
            raise ValueError(f"{where}: {len(pattern)} characters long; the limit is {MAX_PATTERN_CHARS}")
        try:
            _compile(pattern)
        except (re.error, OverflowError) as error:
            raise ValueError(f"{where}: {pattern[:80]!r} is not a regular expression: {error}") from None
    return grammar_of(patterns)


def find(texts: Sequence[str], patterns: Sequence[str]) -> list[str | None]:
    """In each text what the first pattern that matches finds."""
    return [first_match(text, patterns) for text in texts]


def compare(items: Sequence[tuple[str, str]], patterns: Sequence[str]) -> list[dict[str, float]]:
    """Of texts and the answers that are expected in them: 1 if the answer that is found is that one."""
    scored = []
    for generated, expected in items:
        found = first_match(generated, patterns)
        equal = found is not None and found.strip() == expected.strip()
        scored.append({"score": 1.0 if equal else 0.0})
    return scored


def first_match(text: str, patterns: Sequence[str]) -> str | None:
    """The first group of the first pattern that matches, or the whole match of one without groups."""
    for pattern in patterns:
        if (match := _compile(pattern).search(text)) is not None:
            return next((group for group in match.groups() if group is not None), match[0])
    return None


def _compile(pattern: str) -> re.Pattern[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return re.compile(pattern)
