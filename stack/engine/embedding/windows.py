"""Texts longer than a model reads, as several windows whose mean stands for the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from stack.engine.embedding.vectors import Spans, Vectors


def windows_of(text: str, spans: Spans, room: int) -> list[str]:
    """The text in pieces of at most `room` tokens, all about equally long; [text] when it fits."""
    if len(spans) <= room:
        return [text]
    count = math.ceil(len(spans) / room)
    cuts = [len(spans) * i // count for i in range(count + 1)]
    return [text[spans[a][0] : spans[b - 1][1]] for a, b in pairwise(cuts)]


def mean_of_windows(vectors: Vectors, counts: Sequence[int]) -> Vectors:
    """float32 [texts, dimension]: of each text's windows, `counts[i]` rows in order, the mean at unit length.

    A text with one window keeps its vector as it is.
    """
    starts = np.cumsum([0, *counts[:-1]])
    means = np.add.reduceat(vectors, starts, axis=0)
    for i, count in enumerate(counts):
        if count > 1:
            means[i] /= max(float(np.linalg.norm(means[i])), 1e-12)
    return means
