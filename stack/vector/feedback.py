"""Feedback: the best chunks of a first search say more of what is wanted than the query alone.

Pseudo-relevance feedback on the vector side (Rocchio 1971): the query's vector moves towards those of the
first search's best chunks, and all candidates, those that only the words found among them, are compared with
it. On Cranfield it raises nDCG@10 of plain reciprocal rank fusion by 0.02, see docs/benchmarks.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stack.vector.fusion import fuse

BEST = 5

T = TypeVar("T")


def moved(query: NDArray[np.float32], best: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The query's unit vector [dimension] moved half-way to `best`'s, which weigh 1, 1/2, 1/3, …"""
    if not best:
        return query
    total = np.sum([vector / rank for rank, vector in enumerate(best, 1)], axis=0)
    both = query + total / max(float(np.linalg.norm(total)), 1e-12)
    unit: NDArray[np.float32] = both / max(float(np.linalg.norm(both)), 1e-12)
    return unit


def ranked_again(
    query: NDArray[np.float32], candidates: Mapping[T, NDArray[np.float32]], first: Sequence[T]
) -> list[T]:
    """The candidates by similarity to the moved query. `first`: keys of the first search, best first."""
    best = [candidates[key] for key in first if key in candidates][:BEST]
    goal = moved(query, best)
    keys = list(candidates)
    similarity = np.stack([candidates[key] for key in keys]) @ goal if keys else np.empty(0)
    return [keys[i] for i in np.argsort(-similarity, kind="stable")]


def hybrid(
    queries: Sequence[NDArray[np.float32]],
    near: Sequence[Mapping[T, NDArray[np.float32]]],
    shared: Sequence[T],
    vectors: Sequence[Mapping[T, NDArray[np.float32]]],
) -> list[tuple[T, float]]:
    """(chunk, score) best first, of reciprocal rank fusion after feedback.

    For each embedding model: its query, the vectors of the chunks that are near (best first), and those of
    the chunks that the words found. `shared`: what the words found, of all models, best first; of equal
    sums, which are frequent, the better rank there decides.
    """
    first = [key for key, _ in fuse([shared, *map(list, near)], most=2)]
    again = [
        ranked_again(query, {**close, **found}, first)
        for query, close, found in zip(queries, near, vectors, strict=True)
    ]
    # Only one embedding model's list can have a given chunk.
    return fuse([shared, *again], most=2)
