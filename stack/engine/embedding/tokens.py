"""Texts to token ids for an embedding model: batches, huge texts, and which end is cut off."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from stack.engine.embedding.vectors import Spans
from stack.errors import BadRequest, ContextTooLong

Truncation = Literal["none", "start", "end"]
Ids = NDArray[np.int32]

# Longer texts are tokenized in pieces, and no further than the model reads.
PIECE_CHARS = 32_768
MAX_TOKEN_CHARS = 128  # no language's tokens are longer
_WORD_END = re.compile(r"(?<=\S)\s(?=\S)")
_LAST_WORD_END = re.compile(r"(?s).*(?<=\S)(?=\s\S)")


class TextTooLong(ContextTooLong):
    """One of several texts is longer than the model reads; `exact` is false when counting stopped early."""

    def __init__(self, prompt_tokens: int, limit: int, index: int, exact: bool = True) -> None:
        super().__init__(prompt_tokens, limit)
        self.args = (prompt_tokens, limit, index, exact)

    def __str__(self) -> str:
        tokens, limit, index, exact = self.args
        return (
            f"contents[{index}] has {'' if exact else 'more than '}{tokens} tokens, the model takes {limit}; "
            'split it, or set text_truncation to "end" or "start" to drop the tokens at that end'
        )


class TextTokens:
    """A model's tokenizer with the special tokens around every text. Safe to call from several threads."""

    def __init__(self, tokenizer: Tokenizer, limit: int) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        whole, bare = (tokenizer.encode("a", add_special_tokens=special).ids for special in (True, False))
        start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        self.tokenizer = tokenizer
        self.limit = limit
        self.prefix, self.suffix = whole[:start], whole[start + len(bare) :]

    @property
    def room(self) -> int:
        """Tokens that a text can have beside the special ones."""
        return self.limit - len(self.prefix) - len(self.suffix)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens left out."""
        return [len(ids) for ids in self.ids(texts)]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """All token ids of each text, special tokens left out."""
        pieces = [list(_pieces(text)) for text in texts]
        found = iter(self._ids([piece for text in pieces for piece in text]))
        return [[token for _ in text for token in next(found)] for text in pieces]

    def spans(self, texts: Sequence[str]) -> list[Spans]:
        """Where each token of each text stands, special tokens left out."""
        pieces = [list(_pieces(text)) for text in texts]
        encodings = iter(
            self.tokenizer.encode_batch(
                [piece for text in pieces for piece in text], add_special_tokens=False
            )
        )
        found = []
        for text in pieces:
            start, parts = 0, [np.empty((0, 2), np.int32)]
            for piece in text:
                offsets = np.array(next(encodings).offsets, np.int32).reshape(-1, 2)
                parts.append(offsets + np.int32(start))
                start += len(piece)
            found.append(np.concatenate(parts))
        return found

    def fit(
        self, texts: Sequence[str], truncation: Truncation, prompt: str = "", first_index: int = 0
    ) -> list[Ids]:
        """Ids of `prompt + text` with special tokens, at most `limit`; cutting the start keeps the prompt.

        Raises TextTooLong with truncation none, and BadRequest for text that is no Unicode.
        """
        short = [prompt + text for text in texts if len(text) <= PIECE_CHARS]
        prompt_tokens = len(self._ids([prompt])[0]) if prompt else 0
        try:
            contents = iter(self._ids(short))
            return [
                self._cut(
                    next(contents) if len(text) <= PIECE_CHARS else self._huge(prompt, text, truncation),
                    len(text) <= PIECE_CHARS,
                    truncation,
                    prompt_tokens,
                    index,
                )
                for index, text in enumerate(texts, first_index)
            ]
        except (UnicodeEncodeError, TypeError):
            for index, text in enumerate(texts, first_index):
                _check_unicode(text, index)
            raise

    def cut_text(self, text: str, truncation: Truncation, prompt: str = "") -> str:
        """The text without what `fit` drops, for encoders that tokenize by themselves."""
        room = self.room - (len(self._ids([prompt])[0]) if prompt else 0)
        chars = room * MAX_TOKEN_CHARS + PIECE_CHARS
        part = text[-chars:] if truncation == "start" else text[:chars]
        offsets = self.tokenizer.encode(part, add_special_tokens=False).offsets
        if len(offsets) <= room or room <= 0:
            return part
        return part[offsets[-room][0] :] if truncation == "start" else part[: offsets[room - 1][1]]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _cut(
        self, content: list[int], exact: bool, truncation: Truncation, prompt_tokens: int, index: int
    ) -> Ids:
        room = self.room
        if len(content) > room:
            if truncation == "none":
                special = len(self.prefix) + len(self.suffix)
                raise TextTooLong(len(content) + special, self.limit, index, exact)
            if truncation == "end":
                content = content[:room]
            else:
                kept = max(0, room - prompt_tokens)
                content = (content[:prompt_tokens] + content[len(content) - kept :])[:room]
        return np.array([*self.prefix, *content, *self.suffix], dtype=np.int32)

    def _huge(self, prompt: str, text: str, truncation: Truncation) -> list[int]:
        """At least as many tokens as the model reads, if there are, from the end that is kept."""
        if truncation == "start":
            end: list[int] = []
            for piece in _pieces_from_end(text):
                end = self._ids([piece])[0] + end
                if len(end) > self.room:
                    break
            return (self._ids([prompt])[0] if prompt else []) + end
        ids: list[int] = []
        for piece in _pieces(prompt + text):
            ids += self._ids([piece])[0]
            if len(ids) > self.room:
                break
        return ids


def _pieces(text: str) -> Iterator[str]:
    """Pieces of about PIECE_CHARS, cut between words, where tokenizers cut as well.

    A "word" of PIECE_CHARS is cut in two: it is no language, and must not take minutes.
    """
    start = 0
    while start < len(text):
        match = _WORD_END.search(text, start + PIECE_CHARS, start + 2 * PIECE_CHARS)
        end = match.start() if match else start + 2 * PIECE_CHARS
        yield text[start:end]
        start = end


def _pieces_from_end(text: str) -> Iterator[str]:
    end = len(text)
    while end > 0:
        low = max(0, end - 2 * PIECE_CHARS)
        match = _LAST_WORD_END.match(text, low, max(low, end - PIECE_CHARS)) if low else None
        start = match.end() if match else low
        yield text[start:end]
        end = start


def _check_unicode(text: Any, index: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(
            f"contents[{index}] is not valid Unicode: character {error.start} is a lone surrogate "
            f"({text[error.start]!a}); send UTF-8 text"
        ) from None
