"""What the scores of any number of rows amount to. Tallies of parts merge into that of the whole."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import JsonValue

from stack.schemas.common import JsonObject
from stack.schemas.scoring_functions import AggregationFunctionType

Score = float | str


@dataclass(slots=True)
class Tally:
    """How often each score came with each weight; exact, so neither order nor parts make a difference."""

    counts: Counter[tuple[Score, float]] = field(default_factory=Counter)
    unscored: int = 0

    def add(self, score_rows: Iterable[JsonObject]) -> None:
        found: Counter[Any] = Counter((row["score"], row.get("weight", 1.0)) for row in score_rows)
        for (score, weight), count in found.items():
            if score is None:
                self.unscored += count
            else:
                self.counts[score, weight] += count

    def merge(self, other: Tally) -> None:
        self.counts.update(other.counts)
        self.unscored += other.unscored

    def aggregate(self, functions: Sequence[AggregationFunctionType]) -> JsonObject:
        """Of each function its result, such as `{"average": {"average": 0.5}}`.

        An aggregate of no rows is null. `num_unscored` counts the rows that it leaves out: those that were
        not scored and, unless categories are counted, those whose score is a text.
        """
        return {
            name: {**_AGGREGATES[name](self), **self._left_out(name)} for name in dict.fromkeys(functions)
        }

    @property
    def numbers(self) -> list[tuple[float, float, int]]:
        """Scores that are numbers: score, weight, how many rows."""
        return [
            (score, weight, count)
            for (score, weight), count in self.counts.items()
            if not isinstance(score, str)
        ]

    def _left_out(self, name: str) -> JsonObject:
        texts = sum(count for (score, _), count in self.counts.items() if isinstance(score, str))
        left_out = self.unscored + (0 if name == "categorical_count" else texts)
        return {"num_unscored": left_out} if left_out else {}


def _average(tally: Tally) -> JsonObject:
    numbers = tally.numbers
    total = sum(count for _, _, count in numbers)
    return {"average": _ratio(math.fsum(score * count for score, _, count in numbers), total)}


def _weighted_average(tally: Tally) -> JsonObject:
    """Σ score·weight / Σ weight; a row without a weight weighs 1."""
    numbers = tally.numbers
    weights = math.fsum(weight * count for _, weight, count in numbers)
    total = math.fsum(score * weight * count for score, weight, count in numbers)
    return {"weighted_average": _ratio(total, weights)}


def _median(tally: Tally) -> JsonObject:
    """The middle score, or the mean of the two in the middle."""
    numbers = sorted((score, count) for score, _, count in tally.numbers)
    total = sum(count for _, count in numbers)
    if total == 0:
        return {"median": None}
    return {"median": (_at(numbers, (total - 1) // 2) + _at(numbers, total // 2)) / 2}


def _at(numbers: Sequence[tuple[float, int]], place: int) -> float:
    for score, count in numbers:
        place -= count
        if place < 0:
            return score
    raise IndexError(place)


def _categorical_count(tally: Tally) -> JsonObject:
    counts: Counter[str] = Counter()
    for (score, _), count in tally.counts.items():
        counts[str(score)] += count
    found: dict[str, JsonValue] = dict(counts.most_common())
    return {"categorical_count": found}


def _accuracy(tally: Tally) -> JsonObject:
    """The share of the rows whose score is 1."""
    numbers = tally.numbers
    total = sum(count for _, _, count in numbers)
    correct = sum(count for score, _, count in numbers if score == 1)
    return {"accuracy": _ratio(correct, total), "num_correct": correct, "num_total": total}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


_AGGREGATES: dict[AggregationFunctionType, Callable[[Tally], JsonObject]] = {
    "average": _average,
    "weighted_average": _weighted_average,
    "median": _median,
    "categorical_count": _categorical_count,
    "accuracy": _accuracy,
}
