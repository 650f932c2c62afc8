"""Where the tokens of long texts begin and end, asked of the embedding model in calls of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

import numpy as np

from stack.rag.chunk import Spans

PIECE_CHARS = 32 << 10
CALL_CHARS = 256 << 10


class Tokenizes(Protocol):
    async def token_spans(self, texts: list[str]) -> list[Spans]: ...


async def token_spans(model: Tokenizes, texts: Sequence[str]) -> list[Spans]:
    """The spans of each text. Long texts are tokenized in parts that end between words, which is the same."""
    parts = [(number, start, part) for number, text in enumerate(texts) for start, part in _parts(text)]
    found: list[list[Spans]] = [[] for _ in texts]
    rest = iter(parts)
    while batch := list(_batch(rest)):
        spans = await model.token_spans([part for _, _, part in batch])
        for (number, start, _), part_spans in zip(batch, spans, strict=True):
            found[number].append(part_spans.reshape(-1, 2).astype(np.int32) + np.int32(start))
    return [np.concatenate(spans) if spans else np.empty((0, 2), np.int32) for spans in found]


def _parts(text: str) -> Iterator[tuple[int, str]]:
    start = 0
    while start < len(text):
        end = start + PIECE_CHARS
        if end < len(text):
            space = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
            end = space if space > 0 else end
        yield start, text[start:end]
        start = end


def _batch(parts: Iterator[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    return islice(parts, CALL_CHARS // PIECE_CHARS)
