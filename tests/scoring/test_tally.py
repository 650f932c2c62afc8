"""Aggregates of scores, each against numbers worked here by hand."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from stack.scoring.tally import Tally

ALL: tuple[Any, ...] = ("average", "weighted_average", "median", "categorical_count", "accuracy")


def tally(*rows: dict[str, Any]) -> Tally:
    found = Tally()
    found.add(rows)
    return found


def test_each_aggregate() -> None:
    scores = tally(
        {"score": 1.0, "weight": 1.0}, {"score": 0.5, "weight": 2.0}, {"score": 0.25, "weight": 4.0}
    )
    assert scores.aggregate(ALL) == {
        "average": {"average": pytest.approx(1.75 / 3)},
        "weighted_average": {"weighted_average": pytest.approx((1 + 1 + 1) / 7)},
        "median": {"median": 0.5},
        "categorical_count": {"categorical_count": {"1.0": 1, "0.5": 1, "0.25": 1}},
        "accuracy": {"accuracy": pytest.approx(1 / 3), "num_correct": 1, "num_total": 3},
    }


def test_the_median_of_an_even_number_is_between_the_two_in_the_middle() -> None:
    assert tally(*({"score": score} for score in (9, 1, 2, 4))).aggregate(["median"]) == {
        "median": {"median": 3.0}
    }


def test_rows_that_were_not_scored_are_counted_and_left_out() -> None:
    scores = tally({"score": 1.0}, {"score": None, "error": "why"}, {"score": 0.0})
    assert scores.aggregate(["accuracy", "average"]) == {
        "accuracy": {"accuracy": 0.5, "num_correct": 1, "num_total": 2, "num_unscored": 1},
        "average": {"average": 0.5, "num_unscored": 1},
    }


def test_texts_are_categories_and_no_numbers() -> None:
    scores = tally({"score": "A"}, {"score": "B"}, {"score": "A"}, {"score": 3})
    assert scores.aggregate(["categorical_count", "average", "accuracy"]) == {
        "categorical_count": {"categorical_count": {"A": 2, "B": 1, "3": 1}},
        "average": {"average": 3.0, "num_unscored": 3},
        "accuracy": {"accuracy": 0.0, "num_correct": 0, "num_total": 1, "num_unscored": 3},
    }


@pytest.mark.parametrize("rows", [[], [{"score": None, "error": "why"}], [{"score": 1.0, "weight": 0.0}]])
def test_nothing_is_never_nan(rows: list[dict[str, Any]]) -> None:
    text = json.dumps(tally(*rows).aggregate(ALL), allow_nan=False)
    assert '"weighted_average": null' in text
    if not rows:
        assert (
            json.loads(text)["accuracy"]
            == {"accuracy": {"accuracy": None, "num_correct": 0, "num_total": 0}}["accuracy"]
        )


def test_parts_make_the_whole_in_any_order() -> None:
    """0.1 added ten million times in two orders differs as floats; tallies are exact."""
    draw = random.Random(1)
    rows = [{"score": draw.choice([0.1, 0.2, 0.7]), "weight": draw.choice([1.0, 3.0])} for _ in range(5000)]
    rows += [{"score": None}] * 7
    whole = tally(*rows).aggregate(ALL)
    draw.shuffle(rows)
    merged = Tally()
    for start in range(0, len(rows), 100):
        merged.merge(tally(*rows[start : start + 100]))
    assert json.loads(json.dumps(merged.aggregate(ALL))) == json.loads(json.dumps(whole))
    assert whole["average"] != {"average": 0.0}
