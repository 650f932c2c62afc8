"""How good a ranking is, and ways of making one of two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DEPTH = 100  # candidates of each leg
K = 60  # of reciprocal rank fusion

Scores = NDArray[np.float64]
"""[queries, documents], higher is better, -inf where a search did not find the document."""


def ranks(scores: Scores) -> NDArray[np.int64]:
    """From 1; equal scores in the documents' order."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.empty_like(order)
    np.put_along_axis(ranked, order, np.arange(1, scores.shape[1] + 1)[None], axis=1)
    return ranked


def first_ten(scores: Scores, grades: Scores) -> Scores:
    """[queries, 10]: grades of the first ten, 0 for a place that nothing has taken."""
    top = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    found = np.isfinite(np.take_along_axis(scores, top, 1))
    return np.where(found, np.take_along_axis(grades, top, 1), 0.0)


def ndcg(scores: Scores, grades: Scores) -> Scores:
    """[queries]"""
    discount = 1 / np.log2(np.arange(2, 12))
    ideal = -np.sort(-grades, axis=1)[:, :10]
    return np.asarray(first_ten(scores, grades) @ discount / (ideal @ discount))


def recall(scores: Scores, grades: Scores) -> Scores:
    """[queries]"""
    return np.asarray((first_ten(scores, grades) > 0).sum(1) / (grades > 0).sum(1))


def reciprocal_rank(scores: Scores, grades: Scores) -> Scores:
    """[queries]: 1 / rank of the first relevant document, 0 when it is not among the first ten."""
    relevant = first_ten(scores, grades) > 0
    return np.where(relevant.any(1), 1 / (relevant.argmax(1) + 1), 0.0)


def interval(differences: Scores) -> tuple[float, float]:
    """95%, from 5,000 samples of the queries with replacement."""
    samples = np.random.default_rng(0).integers(0, len(differences), (5000, len(differences)))
    low, high = np.percentile(differences[samples].mean(1), [2.5, 97.5])
    return float(low), float(high)


def held_out(results: Sequence[Scores], base: Scores, rounds: int = 500) -> float:
    """Gain over `base` on one half of the queries of the variant that was best on the other half.

    `results` and `base` hold nDCG per query; the mean over `rounds` random halves.
    """
    table, generator, half = np.array(results), np.random.default_rng(1), len(base) // 2
    gains = []
    for _ in range(rounds):
        order = generator.permutation(len(base))
        chosen = table[:, order[:half]].mean(1).argmax()
        gains.append((table[chosen] - base)[order[half:]].mean())
    return float(np.mean(gains))


def cut(scores: Scores, depth: int = DEPTH) -> Scores:
    return np.where(ranks(scores) <= depth, scores, -np.inf)


def reciprocal(scores: Scores, k: int = K) -> Scores:
    return np.where(np.isfinite(scores), 1 / (k + ranks(scores)), 0.0)


def added(vector: Scores, keyword: Scores) -> Scores:
    """Of two legs' shares. Sums are often equal, as of ranks 1 and 2 with 2 and 1: then keywords decide."""
    fused = vector + keyword * (1 + 1e-9)
    return np.where(fused > 0, fused, -np.inf)


def plain(vector: Scores, keyword: Scores, k: int = K, depth: int = DEPTH, share: float = 0.5) -> Scores:
    """Reciprocal rank fusion (Cormack et al. 2009); `share` is the vector leg's weight."""
    return added(share * reciprocal(cut(vector, depth), k), (1 - share) * reciprocal(cut(keyword, depth), k))


def scaled_sum(vector: Scores, keyword: Scores, share: float = 0.5) -> Scores:
    """Scores between each query's least and greatest, added; what a leg did not find has its least."""

    def scaled(scores: Scores) -> Scores:
        found = np.isfinite(scores)
        low = np.where(found, scores, np.inf).min(1, keepdims=True)
        span = np.where(found, scores, -np.inf).max(1, keepdims=True) - low
        return np.where(found, (scores - low) / np.maximum(span, 1e-9), 0.0)

    legs = share * scaled(cut(vector)) + (1 - share) * scaled(cut(keyword))
    return np.where(np.isfinite(cut(vector)) | np.isfinite(cut(keyword)), legs, -np.inf)


@dataclass(frozen=True, slots=True)
class Feedback:
    """Pseudo relevance feedback (Rocchio 1971) from both legs to the vector leg, on what they found.

    The query's vector is moved towards the first documents of plain fusion: to it is added `weight` times
    the unit vector of the sum of theirs, each divided by its rank if `by_rank`. Candidates, whichever leg
    found them, are ranked anew by their cosine to that, and this ranking takes the vector leg's place.
    """

    top: int = 5
    weight: float = 1.0
    by_rank: bool = True

    def __call__(self, vector: Scores, keyword: Scores, queries: Scores, documents: Scores) -> Scores:
        first = plain(vector, keyword)
        order = np.argsort(-first, axis=1, kind="stable")[:, : self.top]
        shares = 1 / np.arange(1, self.top + 1) if self.by_rank else np.ones(self.top)
        towards = unit(np.einsum("qtd,t->qd", documents[order], shares))
        moved = unit(queries + self.weight * towards)
        again = np.where(np.isfinite(first), moved @ documents.T, -np.inf)
        return added(reciprocal(again), reciprocal(cut(keyword)))


def unit(vectors: Scores) -> Scores:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))
