"""A text -> pieces of at most so many tokens, cut where it cuts best. Pure, and linear in the length."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Spans = NDArray[np.int32]
"""[tokens, 2]: where each token begins and ends in the text, in characters."""

OVERLAP_SHARE = 8
"""A chunk begins with up to an eighth of what the one before it ends with."""


@dataclass(frozen=True, slots=True)
class Piece:
    """`text[start:end]`, which has `tokens` tokens."""

    start: int
    end: int
    tokens: int


class _Cut(IntEnum):
    """How good it is to cut before a token."""

    CHARACTER = -1  # the token before is of the same character
    ANY = 0
    WORD = 1
    LINE = 2
    SENTENCE = 3
    PARAGRAPH = 4
    HEADING = 5


_BOUNDARIES = (
    (_Cut.LINE, re.compile(r"\n[^\S\n]*(?=\S)")),
    # Not after initials and abbreviations like "e.g."; quotes and brackets belong to the sentence they end.
    (_Cut.SENTENCE, re.compile(r"""(?<!\b\w)[.!?…]["'”’»)\]]*\s+(?=\S)""")),
    (_Cut.SENTENCE, re.compile(r"""[。！？｡．]["'”’」』）]*\s*(?=\S)""")),
    (_Cut.PARAGRAPH, re.compile(r"\n[^\S\n]*\n\s*(?=\S)")),
    (_Cut.HEADING, re.compile(r"(?:^|(?<=\n))#{1,6}[^\S\n]")),
)
_AFTER_HEADING = re.compile(r"(?:^|(?<=\n))#{1,6}[^\S\n][^\n]*\n\s*(?=[^\s#])")


def split(text: str, spans: Spans, size: int, overlap: int | None = None) -> list[Piece]:
    """Pieces of at most `size` tokens which together have every token, in order.

    Each is at least half full, and the last at least a quarter where the text has as much; in the second
    half of a piece the best boundary wins: heading, paragraph, sentence, line, word. A piece begins with up
    to `overlap` tokens of the one before (default: an eighth of `size`), with whole sentences if possible;
    after a heading's boundary with none. A single character of more than `size` tokens stays whole.
    """
    spans = spans[spans[:, 1] > spans[:, 0]]
    count = len(spans)
    if count == 0:
        return []
    overlap = size // OVERLAP_SHARE if overlap is None else min(overlap, size // 2)
    quality = _quality(text, spans)
    pieces, start = [], 0
    while True:
        cut = _end_of(quality, start, size, count)
        pieces.append(_piece(text, spans, start, cut))
        if cut == count:
            return pieces
        start = _next_start(quality, start, cut, overlap)


def _quality(text: str, spans: Spans) -> NDArray[np.int8]:
    """[tokens]: how good it is to cut before each token."""
    starts, ends = spans[:, 0], spans[:, 1]
    quality = np.zeros(len(spans), np.int8)
    is_space = np.array([character.isspace() for character in text], bool)  # far quicker than it looks
    gap = (starts[1:] > ends[:-1]) | is_space[starts[1:]] | is_space[ends[:-1] - 1]
    quality[1:][gap] = _Cut.WORD
    text = text.rstrip()  # the patterns look for what comes after space, in vain at the end: quadratic time
    for cut, pattern in _BOUNDARIES:
        at = [match.start() if cut is _Cut.HEADING else match.end() for match in pattern.finditer(text)]
        _mark(quality, ends, at, cut)
    # A heading goes with what follows.
    _mark(quality, ends, [match.end() for match in _AFTER_HEADING.finditer(text)], _Cut.WORD)
    quality[1:][starts[1:] < ends[:-1]] = _Cut.CHARACTER
    return quality


def _mark(quality: NDArray[np.int8], ends: NDArray[np.int32], at: list[int], cut: _Cut) -> None:
    """The token that has the character at each place, or the next one."""
    tokens = np.searchsorted(ends, np.asarray(at, np.int64), side="right")
    quality[tokens[tokens < len(quality)]] = cut


def _end_of(quality: NDArray[np.int8], start: int, size: int, count: int) -> int:
    """The token before which the piece from `start` ends."""
    if count - start <= size:
        return count
    low = start + max(1, size // 2)
    high = max(low, min(start + size, count - size // 4))
    window = quality[low : high + 1][::-1]  # the later the better
    cut = high - int(window.argmax())
    if quality[cut] != _Cut.CHARACTER:
        return cut
    # All of the window is one character, or the halves of some.
    while cut > start + 1 and quality[cut] == _Cut.CHARACTER:
        cut -= 1
    if quality[cut] == _Cut.CHARACTER or cut == start:
        cut = start + 1
        while cut < count and quality[cut] == _Cut.CHARACTER:
            cut += 1
    return cut


def _next_start(quality: NDArray[np.int8], start: int, cut: int, overlap: int) -> int:
    """The token that the piece after a cut begins with."""
    first = max(start + 1, cut - overlap)
    if overlap == 0 or first >= cut or quality[cut] == _Cut.HEADING:
        return cut
    window = quality[first:cut]
    for least in (_Cut.SENTENCE, _Cut.WORD, _Cut.ANY):
        found = np.flatnonzero(window >= least)
        if len(found):
            return first + int(found[0])
    return cut


def _piece(text: str, spans: Spans, first: int, stop: int) -> Piece:
    """Also what stands between tokens belongs to a piece, save whitespace at its ends."""
    start = 0 if first == 0 else int(spans[first, 0])
    end = len(text) if stop == len(spans) else max(int(spans[stop, 0]), int(spans[stop - 1, 1]))
    inner = text[start:end]
    start, end = end - len(inner.lstrip()), start + len(inner.rstrip())
    return Piece(start, end, stop - first)
