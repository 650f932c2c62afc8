"""Streamed text equals the text decoded at once, and no part of a stop string gets out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stack.engine.batching.text_stream import Detokenizer, StopStrings, TextStream, TokenTexts, decoder

TEXTS = [
    "plain words, and more.",
    "naïve café — “quotes” … 日本語のテキスト, русский, عربى, 👩‍👩‍👧‍👦 and 🏳️‍🌈!",
    "  leading spaces\n\n\ttabs\n",
    "a�b ends in a real replacement character �",
    "",
]


@pytest.fixture(scope="module")
def byte_level(smollm2_dir: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(smollm2_dir)


@pytest.fixture(scope="module")
def sentencepiece() -> PreTrainedTokenizerFast:
    """Llama 2's way: ▁ for spaces, the first one dropped, bytes for what the vocabulary lacks."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁a", "▁b", "a", "b", "c", "ab", "▁word", ".", "é"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def stream(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(decoder(tokenizer))
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_text_is_the_text(byte_level: PreTrainedTokenizerFast, text: str) -> None:
    ids = byte_level.encode(text, add_special_tokens=False)
    pieces = stream(byte_level, ids)
    assert "".join(pieces) == text
    if "�" not in text:
        assert not any("�" in piece for piece in pieces)


def test_any_byte_level_tokens_stream_as_they_decode(byte_level: PreTrainedTokenizerFast) -> None:
    """Random tokens, so with broken characters everywhere, and special tokens in between."""
    draw = random.Random(0)
    partial = [i for i in range(len(byte_level)) if "�" in byte_level.decode([i])]
    assert len(partial) > 100
    for _ in range(300):
        ids = [
            draw.choice(partial) if draw.random() < 0.5 else draw.randrange(len(byte_level))
            for _ in range(draw.randrange(40))
        ] + draw.choices(byte_level.all_special_ids, k=draw.randrange(3))
        draw.shuffle(ids)
        assert "".join(stream(byte_level, ids)) == byte_level.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def test_sentencepiece_spaces_bytes_and_special_tokens(sentencepiece: PreTrainedTokenizerFast) -> None:
    draw = random.Random(0)
    characters = ["é", "日", "👍"]
    plain = [sentencepiece.convert_tokens_to_ids(t) for t in ("▁", "▁a", "▁b", "a", "ab", ".", "é", "<s>")]
    for _ in range(300):
        ids: list[int] = []
        for _ in range(draw.randrange(12)):
            if draw.random() < 0.3:
                ids += [byte + 3 for byte in draw.choice(characters).encode()]
                ids.append(draw.choice(plain[1:7]))
            else:
                ids.append(draw.choice(plain))
        expected = sentencepiece.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert "".join(stream(sentencepiece, ids)) == expected


def cut_at_stop(text: str, stop: list[str]) -> str:
    """What StopStrings means: read character by character, end when the text ends in a stop string."""
    for end in range(len(text) + 1):
        for s in sorted(stop, key=len, reverse=True):
            if text[:end].endswith(s):
                return text[: end - len(s)]
    return text


def test_stop_strings_end_the_text_however_it_is_cut() -> None:
    draw = random.Random(0)
    stopped = 0
    for _ in range(3000):
        text = "".join(draw.choices("ab", k=draw.randrange(30)))
        stop = ["".join(draw.choices("ab", k=draw.randrange(1, 6))) for _ in range(draw.randrange(1, 4))]
        stops = StopStrings(stop)
        out, at = "", 0
        while at < len(text) and not stops.stopped:
            size = draw.randrange(1, 5)
            out += stops.push(text[at : at + size])
            at += size
            assert cut_at_stop(text, stop).startswith(out)
        out += "" if stops.stopped else stops.flush()
        assert out == cut_at_stop(text, stop)
        stopped += stops.stopped
    assert 500 < stopped < 3000


def test_only_a_possible_beginning_is_held_back() -> None:
    stops = StopStrings(["###", "\n\nUser"])
    assert stops.push("a # b ##") == "a # b "
    assert stops.push("x") == "##x"
    assert stops.push("end\n\n") == "end"
    assert stops.push("Us") == ""
    assert stops.push("ually") == "\n\nUsually"
    assert not stops.stopped
    assert stops.flush() == ""


def test_stop_string_across_tokens_of_one_character(byte_level: PreTrainedTokenizerFast) -> None:
    ids = byte_level.encode("so it is 👍 done", add_special_tokens=False)
    text = TextStream(decoder(byte_level), ["👍"])
    out = ""
    for token in ids:
        out += text.push(token)
        if text.stopped:
            break
    assert text.stopped
    assert out == "so it is "


def test_flush_gives_an_incomplete_character(byte_level: PreTrainedTokenizerFast) -> None:
    first = byte_level.encode("👍", add_special_tokens=False)[0]
    text = TextStream(decoder(byte_level))
    assert text.push(first) == ""
    assert text.flush() == "�"


def test_token_texts(byte_level: PreTrainedTokenizerFast, sentencepiece: PreTrainedTokenizerFast) -> None:
    texts = TokenTexts(byte_level)
    ids = byte_level.encode(" the 👍", add_special_tokens=False)
    assert texts[ids[0]] == " the"
    assert [texts[i] for i in ids[1:]] == [r"bytes:\x20\xf0\x9f", r"bytes:\x91", r"bytes:\x8d"]
    assert texts[byte_level.eos_token_id] == "<|im_end|>"
    assert texts[10**6] == "<1000000>"
    assert TokenTexts(sentencepiece)[sentencepiece.convert_tokens_to_ids("▁word")] == " word"
    assert TokenTexts(sentencepiece)[3 + 0xE2] == r"bytes:\xe2"
