"""Chunks have every token, no more than asked for, and end where a reader would end them."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from stack.rag.chunk import Piece, Spans, split


def words(text: str) -> Spans:
    """A tokenizer: a token is a word, a punctuation mark or a character of Chinese or Japanese."""
    found = [match.span() for match in re.finditer(r"[\u3000-\u9fff]|\w+|[^\w\s]", text)]
    return np.array(found, np.int32).reshape(-1, 2)


def chunks(text: str, size: int, overlap: int = 0) -> list[str]:
    return [text[piece.start : piece.end] for piece in split(text, words(text), size, overlap)]


@pytest.fixture(scope="module")
def minilm(minilm_dir: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(minilm_dir / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def spans_of(tokenizer: Tokenizer, text: str) -> Spans:
    return np.array(tokenizer.encode(text, add_special_tokens=False).offsets, np.int32).reshape(-1, 2)


def test_short_text_is_one_chunk() -> None:
    assert chunks(" Hello world. \n", 10) == ["Hello world."]


def test_nothing_is_no_chunk() -> None:
    assert chunks("", 10) == []
    assert chunks(" \n\n ", 10) == []


def test_cuts_before_headings_first() -> None:
    text = "# One\n\na b c d e f.\n\ng h i.\n\n# Two\n\nj k l m n o p q r s t."
    assert chunks(text, 16) == ["# One\n\na b c d e f.\n\ng h i.", "# Two\n\nj k l m n o p q r s t."]


def test_cuts_at_paragraphs_before_sentences() -> None:
    text = "a b c d. e f g.\n\nh i j k. l m n o p q r. s t u v w x y z."
    assert chunks(text, 16)[0] == "a b c d. e f g."


def test_cuts_at_the_last_sentence_that_fits() -> None:
    text = "a bb. c d e f gg. h i j k ll. m n oo. p q r s tt. u v ww."
    assert chunks(text, 12) == ["a bb. c d e f gg.", "h i j k ll. m n oo.", "p q r s tt. u v ww."]


def test_a_heading_is_not_parted_from_its_section() -> None:
    text = "a b c d e f g h i j k l.\n\n# Next part\n\nm n o p q r s t u v w x y z."
    assert chunks(text, 20)[1].startswith("# Next part\n\nm n")


def test_abbreviations_end_no_sentence() -> None:
    assert chunks("a b c d e f g hh. i e.g. j k l m n o p q r s t", 16)[0] == "a b c d e f g hh."


def test_overlap_begins_with_a_sentence() -> None:
    text = "a b c d e f g hh. i j kk. l m n o p q r s t u v w x y z."
    first, second, *_ = chunks(text, 16, 6)
    assert first == "a b c d e f g hh. i j kk."
    assert second.startswith("i j kk. l m")


def test_no_overlap_into_the_next_section() -> None:
    text = "a b c d e f g h. i j k.\n\n# New\n\nl m n o p q r s t u v w x y z."
    assert chunks(text, 16, 6)[1].startswith("# New")


def test_the_last_chunk_is_not_tiny() -> None:
    text = " ".join("abcdefghijklmnopq")  # 17 tokens
    assert [len(chunk.split()) for chunk in chunks(text, 16)] == [13, 4]


def test_chinese_is_cut_at_its_full_stops() -> None:
    text = "今天天气很好。我们去公园散步。孩子们在草地上玩。大家都很高兴。" * 3
    cut = chunks(text, 20)
    assert all(chunk.endswith("。") for chunk in cut)
    assert "".join(cut) == text


def test_tokens_of_one_character_stay_together() -> None:
    spans = np.array([[0, 1], [1, 2], [1, 2], [1, 2], [2, 3]], np.int32)  # an emoji of three tokens
    assert [(piece.start, piece.end) for piece in split("a😀b", spans, 2, 0)] == [(0, 1), (1, 2), (2, 3)]


def covered(pieces: list[Piece], spans: Spans) -> bool:
    return all(any(p.start <= start and end <= p.end for p in pieces) for start, end in spans.tolist())


TEXTS = st.text(
    st.sampled_from("ab.!?\n #。天é\t") | st.characters(exclude_categories=["Cs", "Cc"]), max_size=300
)


@settings(deadline=None, max_examples=150)
@given(TEXTS, st.integers(1, 40), st.integers(0, 60))
def test_every_token_is_in_a_chunk(text: str, size: int, overlap: int) -> None:
    spans = words(text)
    pieces = split(text, spans, size, overlap)
    assert covered(pieces, spans)
    assert all(1 <= piece.tokens <= size for piece in pieces)
    assert all(0 <= piece.start < piece.end <= len(text) for piece in pieces)
    assert [piece.start for piece in pieces] == sorted({piece.start for piece in pieces})
    assert all(piece.tokens >= size // 2 for piece in pieces[:-1])


@settings(deadline=None, max_examples=100)
@given(TEXTS, st.integers(1, 40))
def test_by_the_real_tokenizer(minilm: Tokenizer, text: str, size: int) -> None:
    spans = spans_of(minilm, text)
    pieces = split(text, spans, size)
    whole = spans[spans[:, 1] > spans[:, 0]]
    assert covered(pieces, whole)
    assert all(text[piece.start : piece.end].strip() == text[piece.start : piece.end] for piece in pieces)


def test_chunks_count_as_many_tokens_alone(minilm: Tokenizer) -> None:
    text = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
    pieces = split(text, spans_of(minilm, text), 128)
    counts = [len(spans_of(minilm, text[piece.start : piece.end])) for piece in pieces]
    assert counts == [piece.tokens for piece in pieces]
    assert max(counts) <= 128
    assert min(counts[:-1]) >= 64


def test_time_is_linear() -> None:
    def seconds(repeats: int) -> float:
        text = "word and another one. " * repeats
        spans = words(text)
        begun = time.process_time()
        split(text, spans, 64)
        return time.process_time() - begun

    seconds(1000)
    assert seconds(80_000) < 16 * max(seconds(10_000), 0.01)
