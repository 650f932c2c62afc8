"""Token ids beside transformers' own tokenizer, and huge texts beside tokenizing them whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from stack.engine.embedding import tokens as text_tokens
from stack.engine.embedding.tokens import PIECE_CHARS, TextTokens, TextTooLong


@pytest.fixture(scope="module")
def tokens(minilm_dir: Path) -> TextTokens:
    return TextTokens(Tokenizer.from_file(str(minilm_dir / "tokenizer.json")), 64)


@pytest.fixture(scope="module")
def reference(minilm_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minilm_dir)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=400), min_size=1, max_size=4))
def test_ids_are_those_of_transformers(tokens: TextTokens, reference: Any, texts: list[str]) -> None:
    expected = reference(texts, truncation=True, max_length=64)["input_ids"]
    assert [ids.tolist() for ids in tokens.fit(texts, "end")] == expected


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300), st.text(alphabet="ab ,.", max_size=30))
def test_cutting_the_start_keeps_the_prompt(tokens: TextTokens, text: str, prompt: str) -> None:
    whole = tokens.tokenizer.encode(prompt + text, add_special_tokens=False).ids
    kept = len(tokens.tokenizer.encode(prompt, add_special_tokens=False).ids) if prompt else 0
    expected = whole if len(whole) <= 62 else whole[:kept] + whole[len(whole) - (62 - kept) :]
    assert tokens.fit([text], "start", prompt)[0].tolist() == [101, *expected, 102]


@pytest.mark.parametrize(
    "text",
    [
        "some words, ".join(map(str, range(40_000))),
        "x" * (5 * PIECE_CHARS),
        " " * (5 * PIECE_CHARS),
        "line\n\n" * PIECE_CHARS,
    ],
    ids=["words", "one word", "spaces", "lines"],
)
def test_pieces_are_the_text(text: str) -> None:
    assert "".join(text_tokens._pieces(text)) == text
    assert "".join(reversed(list(text_tokens._pieces_from_end(text)))) == text
    assert max(map(len, text_tokens._pieces(text))) <= 2 * PIECE_CHARS


def test_a_huge_text_is_cut_as_if_tokenized_whole(tokens: TextTokens) -> None:
    text = " ".join(f"flow{n}, (mach {n / 7})" for n in range(20_000))
    whole = tokens.tokenizer.encode(text, add_special_tokens=False).ids
    assert tokens.fit([text], "end")[0].tolist() == [101, *whole[:62], 102]
    assert tokens.fit([text], "start")[0].tolist() == [101, *whole[-62:], 102]
    assert tokens.count([text, "a b"]) == [len(whole), 2]
    with pytest.raises(TextTooLong, match="more than"):
        tokens.fit([text], "none")


def test_cut_text_keeps_what_fit_keeps(tokens: TextTokens) -> None:
    for text in ("word " * 500, "word " * 50_000, "short"):
        for truncation in ("start", "end"):
            cut = tokens.cut_text(text, truncation)
            assert tokens.fit([cut], "end")[0].tolist() == tokens.fit([text], truncation)[0].tolist()
            assert len(cut) < 100_000
