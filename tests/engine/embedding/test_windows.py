"""Texts longer than the model reads, and where their tokens stand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stack.engine.embedding.model import EmbeddingModel
from stack.engine.embedding.windows import mean_of_windows, windows_of
from tests.engine.embedding.test_model import ABSTRACTS, TEXTS, open_model, request

LONG = " ".join(ABSTRACTS[:6])


@pytest.fixture(scope="module")
def model(minilm_dir: Path) -> EmbeddingModel:
    return open_model(minilm_dir)


async def test_spans_are_the_tokens(model: EmbeddingModel) -> None:
    texts = [*TEXTS, LONG * 50]
    spans = await model.token_spans(texts)
    assert [len(each) for each in spans] == await model.count_tokens(texts)
    for text, each in zip(texts, spans, strict=True):
        assert (each[:, 1] >= each[:, 0]).all()
        assert (each[1:, 0] >= each[:-1, 0]).all()
        assert not len(each) or each[-1, 1] <= len(text)
    words = [LONG[a:b] for a, b in (await model.token_spans([LONG]))[0][:4]]
    assert LONG.startswith(words[0])


async def test_windows_cover_a_text(model: EmbeddingModel) -> None:
    (spans,) = await model.token_spans([LONG])
    windows = windows_of(LONG, spans, 100)
    assert len(windows) == -(-len(spans) // 100)
    assert "".join("".join(windows).split()) == "".join(LONG.split())
    assert max(await model.count_tokens(windows)) <= 101
    assert windows_of("short", spans[:1], 100) == ["short"]


def test_the_mean_of_windows() -> None:
    vectors = np.array([[3, 4], [1, 0], [0, 1], [0, 2]], np.float32)
    means = mean_of_windows(vectors, [1, 2, 1])
    assert means[0].tolist() == [3, 4]
    assert means[1] == pytest.approx([0.5**0.5, 0.5**0.5])
    assert means[2].tolist() == [0, 2]


async def test_a_long_text_is_embedded_whole(model: EmbeddingModel) -> None:
    """Its end counts as much as its beginning, and short texts keep their vectors."""
    whole = await model.vectors(request([LONG, ABSTRACTS[0], ABSTRACTS[5]]), whole=True)
    parts = await model.vectors(request([ABSTRACTS[0], ABSTRACTS[5]], text_truncation="end"))
    cut = await model.vectors(request([LONG], text_truncation="end"))
    assert np.linalg.norm(whole, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert whole[0] @ parts[1] > cut[0] @ parts[1] + 0.05
    assert whole.shape == (3, model.dimension)
