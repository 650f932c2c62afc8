"""How sure a mean score is, and a difference between two: by resampling the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import exp, fsum, lgamma, log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stack.schemas.common import JsonObject
from stack.scoring.tally import Tally

RESAMPLES = 2000
CONFIDENCE = 0.95
_SEED = 0  # the same scores have the same interval


def interval(tally: Tally) -> JsonObject:
    """`{"bootstrap": {"mean", "low", "high", "confidence"}}` (Efron 1979); nothing without numbers.

    Resampling n rows is drawing how often each distinct score comes, so it costs little for any n.
    """
    numbers = tally.numbers
    if not numbers:
        return {}
    scores = np.array([score for score, _, _ in numbers])
    weights = np.array([weight for _, weight, _ in numbers])
    counts = np.array([count for _, _, count in numbers])
    drawn = _draws(counts)
    total = drawn @ weights
    means = (drawn @ (scores * weights))[total > 0] / total[total > 0]
    mean = float((counts * weights) @ scores / max(float(counts @ weights), 1e-300))
    return {"bootstrap": {"mean": mean, **_bounds(means)}}


def difference(baseline: Sequence[float], candidate: Sequence[float]) -> dict[str, Any]:
    """Of paired scores: the mean of candidate - baseline, its interval, and how likely chance alone is.

    `p_value` is two-sided, of the exact sign test on the rows that differ: McNemar's where scores are 0 or 1.
    """
    deltas = Counter(b - a for a, b in zip(baseline, candidate, strict=True))
    values, counts = np.array(list(deltas)), np.array(list(deltas.values()))
    better = sum(count for delta, count in deltas.items() if delta > 0)
    worse = sum(count for delta, count in deltas.items() if delta < 0)
    n = len(baseline)
    return {
        "rows": n,
        "baseline": sum(baseline) / n,
        "candidate": sum(candidate) / n,
        "difference": float(values @ counts) / n,
        **_bounds(_draws(counts) @ values / n),
        "better": better,
        "worse": worse,
        "p_value": sign_test(better, worse),
    }


def sign_test(better: int, worse: int) -> float:
    """Two-sided and exact: how often fair coins fall at least so unevenly."""
    n, least = better + worse, min(better, worse)
    if n == 0:
        return 1.0
    of_n = lgamma(n + 1) - n * log(2)
    return min(1.0, 2 * fsum(exp(of_n - lgamma(k + 1) - lgamma(n - k + 1)) for k in range(least + 1)))


def _draws(counts: NDArray[Any]) -> NDArray[Any]:
    """[RESAMPLES, distinct values]: how often each comes."""
    n = int(counts.sum())
    return np.random.default_rng(_SEED).multinomial(n, counts / n, size=RESAMPLES)


def _bounds(means: NDArray[Any]) -> dict[str, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return {"low": float(low), "high": float(high), "confidence": CONFIDENCE}
