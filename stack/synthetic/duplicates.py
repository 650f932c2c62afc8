"""Near-duplicates: answers to one question that say the same in nearly the same words."""

from __future__ import annotations

import re
from collections.abc import Iterable

SIMILAR = 0.8
"""Of the shingles of two texts together, this share or more is in both (Broder 1997)."""

_WORDS = 3  # of a shingle


class Seen:
    """What was said to a question so far. Texts are compared by their words, without case and punctuation."""

    def __init__(self) -> None:
        self._shingles: list[frozenset[str]] = []

    def add(self, text: str) -> bool:
        """False: it says what another one said, and is not added."""
        shingles = frozenset(_shingles(re.findall(r"\w+", text.lower())))
        if any(_similarity(shingles, other) >= SIMILAR for other in self._shingles):
            return False
        self._shingles.append(shingles)
        return True


def _shingles(words: list[str]) -> Iterable[str]:
    size = min(_WORDS, len(words))
    return (" ".join(words[start : start + size]) for start in range(len(words) - size + 1))


def _similarity(a: frozenset[str], b: frozenset[str]) -> float:
    together = len(a | b)
    return len(a & b) / together if together else 1.0
