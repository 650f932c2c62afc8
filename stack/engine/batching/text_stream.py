"""Token ids to text while they come: no half characters, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

Decode = Callable[[list[int]], str]

_PARTIAL = "�"  # what a decoder writes for bytes that are not (yet) a character
_LONGEST_PARTIAL = 3  # bytes of a character that can be there without the last one


def decoder(tokenizer: Any) -> Decode:
    """How a transformers tokenizer decodes, without special tokens and without tidying the text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # a tenth of the time of the wrapper around it

        def decode(ids: list[int]) -> str:
            return str(backend.decode(ids, skip_special_tokens=True))

        return decode
    return lambda ids: str(
        tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


class Detokenizer:
    """The pieces it returns, joined, are what decoding all tokens at once gives.

    Decoders look at neighbours (a leading space is dropped at the start of a text only, bytes join to
    characters), so a token is decoded together with those before it that last gave text.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._window: list[int] = []  # context whose text is out, then tokens since
        self._context = 0  # how many of the window's tokens are context
        self._shown = 0  # how many characters of the window's text are out

    def push(self, token: int) -> str:
        """The text that this token completes."""
        self._window.append(token)
        text = self._decode(self._window)
        partial = min(len(text) - len(text.rstrip(_PARTIAL)), _LONGEST_PARTIAL)
        piece = text[self._shown : len(text) - partial]
        if partial:
            self._shown += len(piece)
        elif piece:
            self._window = self._window[self._context :]
            self._context = len(self._window)
            self._shown = len(self._decode(self._window))
        elif self._context:  # a token without text (a special one) is no context to decode the next ones in
            del self._window[self._context :]
        return piece

    def flush(self) -> str:
        """What is still held back: incomplete characters. Nothing may be pushed after it."""
        return self._decode(self._window)[self._shown :] if len(self._window) > self._context else ""


class StopStrings:
    """Passes text on until a stop string appears; holds back only what may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        if not self._stop or not text:
            return text
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:  # the one that is complete first, however the text is cut into tokens
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        held = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


class TextStream:
    """Detokenizer and stop strings of one generation."""

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(decode)
        self._stop = StopStrings(stop)

    @property
    def stopped(self) -> bool:
        """A stop string has appeared; what came before it is out, nothing more will come."""
        return self._stop.stopped

    def push(self, token: int) -> str:
        return self._stop.push(self._detokenizer.push(token))

    def flush(self) -> str:
        """The rest, when generation ends. May still find a stop string."""
        rest = self._stop.push(self._detokenizer.flush())
        return rest if self.stopped else rest + self._stop.flush()


class TokenTexts:
    """How tokens are written in logprobs: their text, or `bytes:\\xe2\\x80` for part of a character."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def __getitem__(self, token: int) -> str:
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = self._text(token)
        return text

    def _text(self, token: int) -> str:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return f"<{token}>"  # the model's vocabulary is larger than the tokenizer's
        text = str(
            self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )
        if _PARTIAL in text:
            return _bytes_of(piece)
        if piece.startswith("▁") and not text.startswith(" "):  # dropped only at the start of a text
            return " " + text
        return text


def _bytes_of(piece: str) -> str:
    if piece.startswith("<0x"):  # sentencepiece's byte fallback
        return f"bytes:\\x{piece[3:5].lower()}"
    table = _byte_level()
    if all(char in table for char in piece):
        return "bytes:" + "".join(f"\\x{table[char]:02x}" for char in piece)
    return piece


@cache
def _byte_level() -> dict[str, int]:
    """GPT-2's writing of bytes as printable characters, inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}
