from __future__ import annotations

from stack.engine.adapters.ranks import GAP, Range, Ranks


def test_holes_are_filled_first() -> None:
    ranks = Ranks()
    assert [ranks.take(key, 8) for key in "abc"] == [(0, 8), (8, 16), (16, 24)]
    ranks.free("b")
    assert ranks.take("wide", 9) == (24, 33)
    assert ranks.take("narrow", 5) == (8, 13)


def test_widths_are_whole_units() -> None:
    ranks = Ranks(unit=16)
    assert ranks.take("a", 3) == (0, 16)
    assert ranks.take("b", 17) == (16, 48)
    assert ranks.capacity % 16 == 0


def test_capacity_is_given_back() -> None:
    ranks = Ranks()
    for key in range(16):
        ranks.take(str(key), 8)
    most = ranks.capacity
    assert 128 <= most <= 256
    for key in range(4, 16):
        ranks.free(str(key))
    assert ranks.capacity == 32
    for key in range(4):
        ranks.free(str(key))
    assert ranks.capacity == 0


def test_neighbours_are_computed_together() -> None:
    ranks = Ranks()
    for key, width in (("a", 8), ("b", 8), ("wide", GAP + 1), ("c", 8)):
        ranks.take(key, width)
    assert ranks.runs({"a"}) == [((0, 8), ["a"])]
    assert ranks.runs({"b", "a"}) == [((0, 16), ["a", "b"])]
    assert ranks.runs({"a", "c"}) == [((0, 8), ["a"]), (Range(17 + GAP, 25 + GAP), ["c"])]
    assert ranks.runs({"a", "wide", "c", "unknown"})[0] == ((0, 25 + GAP), ["a", "wide", "c"])
