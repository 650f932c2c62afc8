from __future__ import annotations

import math

import pytest

from stack.synthetic.filters import Filter, sigmoid

SCORES = [-0.5, -3.0, -0.1, -1.0]


@pytest.mark.parametrize(
    ("chosen", "kept"),
    [
        (Filter("none"), [0, 1, 2, 3]),
        (Filter("top_k", k=1), [2]),
        (Filter("top_k", k=3), [0, 2, 3]),
        (Filter("top_k", k=9), [0, 1, 2, 3]),
        # Shares of the softmax: 0.31, 0.03, 0.47 and 0.19.
        (Filter("top_p", p=0.4), [2]),
        (Filter("top_p", p=0.6), [0, 2]),
        (Filter("top_p", p=0.9), [0, 2, 3]),
        (Filter("top_p", p=1.0), [0, 1, 2, 3]),
        (Filter("top_k_top_p", k=1, p=0.9), [2]),
        (Filter("top_k_top_p", k=3, p=0.6), [0, 2]),
    ],
)
def test_kept(chosen: Filter, kept: list[int]) -> None:
    assert chosen.keep(SCORES, -1.0, 1.0, 0) == kept


def test_shares() -> None:
    total = sum(map(math.exp, SCORES))
    assert [round(math.exp(score) / total, 2) for score in SCORES] == [0.31, 0.03, 0.47, 0.19]


def test_random_is_uniform_and_the_same_again() -> None:
    chosen = Filter("random")
    drawn = [chosen.keep(SCORES, 0, 1, dialog) for dialog in range(4000)]
    assert drawn == [chosen.keep(SCORES, 0, 1, dialog) for dialog in range(4000)]
    for place in range(4):
        assert drawn.count([place]) == pytest.approx(1000, abs=120)


def test_sigmoid_keeps_by_chance() -> None:
    kept = [
        place for dialog in range(4000) for place in Filter("sigmoid").keep([2.0, 0.0, -2.0], 0, 1, dialog)
    ]
    for place, score in enumerate([2.0, 0.0, -2.0]):
        assert kept.count(place) == pytest.approx(4000 * sigmoid(score), abs=150)


@pytest.mark.parametrize("function", ["none", "random", "top_k", "top_p", "top_k_top_p", "sigmoid"])
def test_of_nothing_nothing(function: str) -> None:
    assert Filter(function).keep([], 0.0, 1.0, 0) == []


def test_sigmoid_of_large_numbers() -> None:
    assert (sigmoid(1e4), sigmoid(-1e4), sigmoid(0)) == (1.0, 0.0, 0.5)
