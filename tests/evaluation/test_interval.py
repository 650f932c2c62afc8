from __future__ import annotations

import time

import pytest

from stack.evaluation.interval import difference, interval, sign_test
from stack.scoring.tally import Tally


def tally(*scores: float | str | None) -> Tally:
    found = Tally()
    found.add({"score": score} for score in scores)
    return found


def test_the_interval_of_a_share_is_as_wide_as_theory_says() -> None:
    bootstrap = interval(tally(*[1.0] * 300, *[0.0] * 700))["bootstrap"]
    assert isinstance(bootstrap, dict)
    half_width = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert bootstrap["mean"] == pytest.approx(0.3)
    assert bootstrap["low"] == pytest.approx(0.3 - half_width, abs=0.003)
    assert bootstrap["high"] == pytest.approx(0.3 + half_width, abs=0.003)


def test_of_nothing_and_of_texts_there_is_none() -> None:
    assert interval(tally()) == {}
    assert interval(tally(None, "good")) == {}


def test_one_row() -> None:
    bootstrap = interval(tally(0.5))["bootstrap"]
    assert bootstrap == {"mean": 0.5, "low": 0.5, "high": 0.5, "confidence": 0.95}


def test_a_million_rows_are_quick() -> None:
    began = time.perf_counter()
    interval(tally(*([1.0, 0.0] * 500_000)))
    difference([1.0, 0.0] * 500_000, [1.0] * 1_000_000)
    assert time.perf_counter() - began < 20


def test_weights() -> None:
    found = Tally()
    found.add([{"score": 1.0, "weight": 3.0}, {"score": 0.0, "weight": 1.0}])
    bootstrap = interval(found)["bootstrap"]
    assert isinstance(bootstrap, dict)
    assert bootstrap["mean"] == 0.75


def test_pairs() -> None:
    found = difference([0, 0, 1, 1, 0], [1, 1, 1, 1, 0])
    assert (found["baseline"], found["candidate"]) == (0.4, 0.8)
    assert (found["difference"], found["better"], found["worse"]) == (pytest.approx(0.4), 2, 0)
    assert found["p_value"] == 0.5


@pytest.mark.parametrize(
    ("better", "worse", "p"), [(0, 0, 1), (1, 0, 1), (5, 5, 1), (10, 0, 2 / 1024), (2, 7, 0.1796875)]
)
def test_sign_test(better: int, worse: int, p: float) -> None:
    assert sign_test(better, worse) == pytest.approx(p)
    assert sign_test(worse, better) == pytest.approx(p)
