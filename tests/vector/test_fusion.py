"""Reciprocal rank fusion and feedback, with the arithmetic worked out."""

from __future__ import annotations

import numpy as np
import pytest

from stack.vector.feedback import hybrid, moved, ranked_again
from stack.vector.fusion import fuse


def test_fusion_sums_reciprocal_ranks() -> None:
    fused = fuse([["a", "b"], ["b", "c"]], most=2)
    assert fused == [
        ("b", pytest.approx(61 / 2 * (1 / 62 + 1 / 61))),
        ("a", pytest.approx(0.5)),
        ("c", pytest.approx(61 / 2 / 62)),
    ]
    assert fuse([["a"], ["a"]], most=2) == [("a", pytest.approx(1.0))]
    assert fuse([], most=2) == []


def test_the_query_moves_half_way_to_the_best() -> None:
    query, one, two = np.eye(3, dtype=np.float32)
    assert moved(query, [one]) == pytest.approx([0.5**0.5, 0.5**0.5, 0])
    # 1 and 1/2, at unit length: (0, 2, 1) / sqrt(5); the sum with the query has length sqrt(2).
    assert moved(query, [one, two]) == pytest.approx(np.array([1, 2 / 5**0.5, 1 / 5**0.5]) / 2**0.5)
    assert moved(query, []) is query


def test_candidates_near_the_best_come_forward() -> None:
    query = np.array([1, 0, 0], np.float32)
    candidates = {
        "best": np.array([0.6, 0.8, 0], np.float32),
        "like the best": np.array([0.5, 0.866, 0], np.float32),
        "near the query": np.array([0.7, 0, 0.714], np.float32),
    }
    assert ranked_again(query, candidates, ["best"])[-1] == "near the query"
    assert ranked_again(query, {}, []) == []


def test_hybrid_of_two_embedding_models() -> None:
    """A chunk of one model is not compared with the other's query, whose vectors have other lengths."""
    near = [{"a": np.array([1, 0], np.float32)}, {"b": np.array([0, 1, 0], np.float32)}]
    words = [{"c": np.array([0, 1], np.float32)}, {"b": near[1]["b"]}]
    queries = [np.array([1, 0], np.float32), np.array([0, 1, 0], np.float32)]
    fused = dict(hybrid(queries, near, ["b", "c"], words))
    assert fused["b"] == pytest.approx(1.0)
    assert fused["a"] == pytest.approx(0.5)
    assert fused["c"] == pytest.approx(61 / 62)
