"""Several ranked lists -> one, by reciprocal rank fusion (Cormack, Clarke and Büttcher 2009)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

K = 60
"""Damps how much more the first ranks count; the value of the paper."""

T = TypeVar("T", bound=Hashable)


def fuse(lists: Iterable[Sequence[T]], most: int, k: int = K) -> list[tuple[T, float]]:
    """Lists of items, best first -> (item, score), best first.

    The score is the sum of 1 / (k + rank) over the lists that have the item, ranks from 1, divided by what
    the first of `most` lists has, the most lists that an item can be in: 1.0 is first in all of them.
    """
    scores: dict[T, float] = {}
    for items in lists:
        for rank, item in enumerate(items, 1):
            scores[item] = scores.get(item, 0.0) + (k + 1) / (most * (k + rank))
    return sorted(scores.items(), key=lambda pair: -pair[1])
