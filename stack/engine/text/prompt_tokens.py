"""Text to token ids, where special tokens that callers write are only text.

A caller's text is marked before it is rendered (`mark`): each special token in it is put between two
private-use characters, so that afterwards the template's own can be told from the caller's.
"""

from __future__ import annotations

import re
from typing import Any

from tokenizers import Tokenizer

from stack.errors import BadRequest, ContextTooLong

_START, _END = "\U000f0000", "\U000f0001"
_PROBED_CHARS_PER_TOKEN = 16


class FarTooLong(ContextTooLong):
    """A prompt that is refused before it is tokenized as a whole. `prompt_tokens` is a lower bound."""

    def __str__(self) -> str:
        return "the prompt has more than {} tokens, the model takes {}".format(*self.args)


class PromptTokens:
    """A model's tokenizer for prompts of up to `limit` tokens. Safe to call from several threads."""

    def __init__(self, tokenizer: Any, limit: int, template_text: str = "") -> None:
        """`template_text`: added tokens in it are special, whether the tokenizer says so or not."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise BadRequest(f"its tokenizer ({type(tokenizer).__name__}) has no fast version")
        self._tokenizer = Tokenizer.from_str(backend.to_str())  # ours: no one may switch padding on
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._limit = limit
        self._special = {
            token.content: token_id
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.special or (token.content in template_text and not token.content.isspace())
        }
        longest_first = sorted(filter(None, self._special), key=len, reverse=True)
        special = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._special_pattern = re.compile(special)
        self._marked_pattern = re.compile(f"{_START}({special}){_END}|[{_START}{_END}]")
        self._longest = max(map(len, self._tokenizer.get_vocab()), default=1)
        self._newline = self._ids("\n")

    def check_length(self, characters: int) -> None:
        """Refuse at once what cannot fit: no token stands for more characters than the longest has."""
        if characters > self._limit * self._longest:
            raise FarTooLong(characters // self._longest, self._limit - 1)

    def mark(self, text: str) -> str:
        """A caller's text, to be rendered into a template whose result `encode_marked` takes."""
        text = text.replace(_START, "").replace(_END, "")
        return self._special_pattern.sub(f"{_START}\\g<0>{_END}", text)

    def disarm(self, text: str) -> str:
        """Marked text for a tokenizer that knows no marks: a special token gets an invisible space inside."""
        return self._marked_pattern.sub(lambda match: _split(match[1]), text)

    def encode(self, text: str) -> list[int]:
        """A prompt that is all the caller's: special tokens in it are meant. Begins as the model's do."""
        self._probe(text)
        return list(self._tokenizer.encode(text, add_special_tokens=True).ids)

    def encode_marked(self, text: str, continues: bool = False) -> list[int]:
        """`continues`: the text follows another one. Raises ContextTooLong."""
        self._probe(text)
        pieces = self._marked_pattern.split(text)
        ids = self._later_ids(pieces[0], as_text=False) if continues and pieces[0] else self._ids(pieces[0])
        for number, piece in enumerate(pieces[1:], start=1):
            if piece:
                ids += self._later_ids(piece, as_text=number % 2 == 1)
        return ids

    def _probe(self, text: str) -> None:
        """Refuse a text whose beginning alone is too long, without tokenizing all of it."""
        head = self._limit * _PROBED_CHARS_PER_TOKEN
        if len(text) > head and (tokens := len(self._ids(text[:head]))) > self._limit:
            raise FarTooLong(tokens - 1, self._limit - 1)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _later_ids(self, piece: str, as_text: bool) -> list[int]:
        """Of a piece that does not begin the prompt: after a newline, so that nothing is prepended to it."""
        encode = self._plain_ids if as_text else self._ids
        ids, newline = encode("\n" + piece), self._newline
        ids = ids[len(newline) :] if ids[: len(newline)] == newline else encode(piece)
        if as_text and self._special[piece] in ids:
            raise BadRequest(
                f"the text {piece!r} cannot be told from the model's special token; leave it out"
            )
        return ids

    def _plain_ids(self, text: str) -> list[int]:
        """Without added tokens."""
        if self._tokenizer.normalizer is not None:
            text = self._tokenizer.normalizer.normalize_str(text)
        words = [text]
        if self._tokenizer.pre_tokenizer is not None:
            words = [word for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in self._tokenizer.model.tokenize(word)]


def _split(special: str | None) -> str:
    return special[0] + "\u200b" + special[1:] if special else ""
