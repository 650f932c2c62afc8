"""Embedding calls between processes: messages of bounded size, answered with arrays. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stack.schemas.content import ImageContentItem, TextContentItem
from stack.schemas.inference import EmbeddingsResponse

if TYPE_CHECKING:
    from stack.schemas.inference import EmbeddingsRequest

Vectors = NDArray[np.float32]
Spans = NDArray[np.int32]
"""[tokens, 2]: where each token of a text begins and ends, in characters."""

SLICE_CONTENTS = 128
SLICE_CHARS = 1 << 20


def slices(request: EmbeddingsRequest) -> Iterator[tuple[int, EmbeddingsRequest]]:
    """Parts of a call and the index of each part's first content; one part when there are few contents."""
    start = chars = 0
    for index, content in enumerate(request.contents):
        size = _chars(content)
        if index > start and (index - start == SLICE_CONTENTS or chars + size > SLICE_CHARS):
            yield start, request.model_copy(update={"contents": request.contents[start:index]})
            start, chars = index, 0
        chars += size
    yield start, request.model_copy(update={"contents": request.contents[start:]})


def text_slices(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts in parts for one message each; their spans take several times the room of the texts."""
    start = chars = 0
    for index, text in enumerate(texts):
        if index > start and chars + len(text) > SLICE_CHARS:
            yield list(texts[start:index])
            start, chars = index, 0
        chars += len(text)
    if texts:
        yield list(texts[start:])


def response_of(vectors: Vectors) -> EmbeddingsResponse:
    """Vectors as numbers of 8 decimals: a float32's precision at unit length in half a double's digits."""
    rows = np.round(vectors.astype(np.float64), 8).tolist()
    return EmbeddingsResponse.model_construct(embeddings=rows)


def _chars(content: str | TextContentItem | ImageContentItem) -> int:
    if isinstance(content, str):
        return len(content)
    if isinstance(content, TextContentItem):
        return len(content.text)
    return len(content.image.data or "") + len(content.image.url.uri if content.image.url else "")
