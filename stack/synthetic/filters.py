"""Which candidates are kept, by their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from stack.schemas.synthetic_data import FilteringFunction


@dataclass(frozen=True, slots=True)
class Filter:
    """A filtering function with its numbers. Scores are of one dialog's candidates, higher is better."""

    function: FilteringFunction
    k: int = 1
    p: float = 0.9
    seed: int = 0

    def keep(self, scores: Sequence[float], mean: float, deviation: float, dialog: int) -> list[int]:
        """The places of those that are kept, in order.

        none: all. random: one, drawn uniformly. top_k: the k best. top_p: the best ones whose shares of the
        softmax over the dialog's scores sum to p. top_k_top_p: those of top_p that are among the k best.
        sigmoid: each with the probability sigmoid((score - mean) / deviation) over all dialogs.
        """
        random = Random(f"{self.seed}-{dialog}")
        best = sorted(range(len(scores)), key=lambda place: -scores[place])
        if self.function == "none":
            return list(range(len(scores)))
        if self.function == "random":
            return [random.randrange(len(scores))] if scores else []
        if self.function == "sigmoid":
            draws = [random.random() for _ in scores]
            return [n for n, score in enumerate(scores) if draws[n] < sigmoid((score - mean) / deviation)]
        if self.function == "top_k":
            return sorted(best[: self.k])
        nucleus = best[: self._nucleus([scores[place] for place in best])]
        return sorted(nucleus[: self.k] if self.function == "top_k_top_p" else nucleus)

    def _nucleus(self, scores: Sequence[float]) -> int:
        """How many of the best it takes."""
        shares = [math.exp(score - max(scores)) for score in scores]
        total, sums = sum(shares), 0.0
        for number, share in enumerate(shares, 1):
            sums += share / total
            if sums >= self.p - 1e-9:
                return number
        return len(shares)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
