from __future__ import annotations

from stack.synthetic.duplicates import Seen


def test_the_same_in_other_letters() -> None:
    seen = Seen()
    assert seen.add("A comet is a ball of ice and dust.")
    assert not seen.add("a comet is a ball of ICE, and dust")
    assert seen.add("A moon goes around a planet.")
    assert not seen.add("A moon goes around a planet!")


def test_nearly_the_same() -> None:
    words = [f"word{number}" for number in range(40)]
    seen = Seen()
    assert seen.add(" ".join(words))
    assert not seen.add(" ".join([*words, "more"]))
    assert seen.add(" ".join(reversed(words)))


def test_short_and_empty() -> None:
    seen = Seen()
    assert [seen.add(text) for text in ("yes", "Yes.", "no", "", "…")] == [True, False, True, True, False]
