"""The state of a compiled grammar during one generation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stack.errors import BadRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

# One of these usually brings a text nearer to its end: first what closes a string, then brackets, then what
# must be written before one may close, then the shortest values.
_CLOSERS = ('"', "}", "]", ")", ">", ",", ":", *";/.|=!?&*+%#@$^~_'`\\", "0", "a", "A", *"n-[{<( \n")
_BRACKETS_FIRST = ("}", "]", ")", *(text for text in _CLOSERS if text not in "}])"))
_OPENERS = b"{[(<,"  # a token with one of these may begin something that must be ended

_SLACK = 4  # tokens between the ending and the end of the budget when nothing but the ending is allowed
_CAREFUL = 16  # … when nothing may be begun any more
_GROWTH = 4  # tokens by which one token lengthens the ending at most, as a rule; says how often to look
_MAX_ENDING = 512


class Closers:
    """What is known of a tokenizer's tokens: which end things, which begin none."""

    def __init__(self, tokenizer: Any) -> None:
        self.end_tokens: tuple[int, ...] = tuple(tokenizer.eos_tokens)
        self.orders = tuple(_single_tokens(tokenizer, texts) for texts in (_CLOSERS, _BRACKETS_FIRST))
        self.harmless = _mask_of(
            (
                token
                for token in range(tokenizer.vocab_size)
                if not any(byte in _OPENERS for byte in tokenizer.decode_bytes([token]))
            ),
            tokenizer.vocab_size,
        )


class TokenConstraint:
    """A `Constraint` over llguidance's matcher that also ends in time.

    With a `budget` of tokens it looks, ever more often as the budget shrinks, for a short ending that the
    grammar allows. When little more than that fits, nothing new may be begun; when nothing more fits, only
    the ending is allowed. So a document is whole even when the model would have written on, unless the
    budget is too small for any. `free_text`: where the text may end anyway it is left alone, since a plain
    answer that is cut off is no broken document.
    """

    def __init__(
        self, matcher: Any, closers: Closers, budget: int | None = None, free_text: bool = False
    ) -> None:
        self._matcher = matcher
        self._closers = closers
        self._remaining = budget
        self._free_text = free_text
        self._look_at = budget  # look for an ending once no more than this remains
        self._careful = _CAREFUL
        self._ending: list[int] = []  # the shortest known; its first token is next
        self._closing = False
        self._ended = False

    def fill_mask(self, mask: Tensor) -> None:
        """See `Constraint`. `mask` lies on the CPU. Raises BadRequest when the grammar gets too costly."""
        words: NDArray[np.int32] = mask.numpy().reshape(-1)
        if not self._closing:
            self._look_ahead()
        if self._closing:
            words[:] = _mask_of(self._ending[:1], 32 * len(words))
            return
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self._check()
        if self._ending:
            words &= self._closers.harmless | _mask_of(self._ending[:1], 32 * len(words))

    def accept(self, token_id: int) -> None:
        if token_id in self._closers.end_tokens:
            self._ended = True
        else:
            self._matcher.consume_token(token_id)
            self._check()
        if self._remaining is not None:
            self._remaining -= 1
        if self._closing:
            del self._ending[0]
            self._closing = bool(self._ending)

    @property
    def complete(self) -> bool:
        return self._ended or bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise BadRequest(
                "the output's grammar cannot be followed any further, it takes too long: "
                "simplify its regular expressions, ambiguous rules or lengths"
            )

    def _look_ahead(self) -> None:
        if self._remaining is None or self._look_at is None or self._remaining > self._look_at:
            return
        known = len(self._ending)
        ending = self._shortest_ending(self._remaining)
        if ending is None:  # none fits yet; one may when more is written
            self._ending = []
            self._look_at = self._remaining * 3 // 4
            return
        if known:
            self._careful = max(self._careful, _CAREFUL + len(ending) - known)
        spare = self._remaining - len(ending)
        self._ending = ending if spare <= self._careful else []
        may_end_here = len(ending) == 1
        if may_end_here and self._free_text:
            self._ending = []
        self._closing = bool(self._ending) and (may_end_here or spare <= _SLACK)
        self._look_at = self._remaining - max(1, (spare - self._careful) // (_GROWTH + 1))

    def _shortest_ending(self, limit: int) -> list[int] | None:
        best: list[int] | None = None
        for order in self._closers.orders:
            cap = min(limit, _MAX_ENDING) if best is None else len(best) - 1
            if cap >= 0:
                found = self._ending_by(order, cap)
                best = best if found is None else found
        return best

    def _ending_by(self, order: tuple[int, ...], cap: int) -> list[int] | None:
        """Write the first allowed token of `order` until the end is allowed; at most `cap` tokens."""
        matcher = self._matcher.deep_copy()
        mask = np.zeros_like(self._closers.harmless)
        ending: list[int] = []
        while not matcher.is_stopped():
            if len(ending) >= cap:
                return None
            if matcher.is_accepting():
                return [*ending, self._closers.end_tokens[0]]
            matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            token = _choose(mask, order)
            if token is None or not matcher.consume_token(token):
                return None
            ending.append(token)
        return None if matcher.is_error() else ending


def _single_tokens(tokenizer: Any, texts: Sequence[str]) -> tuple[int, ...]:
    ids = [tokenizer.greedy_tokenize(text) for text in texts]
    return tuple(tokens[0] for tokens in ids if len(tokens) == 1)


def _mask_of(tokens: Iterable[int], vocab_size: int) -> NDArray[np.int32]:
    mask = np.zeros((vocab_size + 31) // 32, dtype=np.uint32)
    for token in tokens:
        mask[token >> 5] |= np.uint32(1 << (token & 31))
    return mask.view(np.int32)


def _choose(mask: NDArray[np.int32], order: tuple[int, ...]) -> int | None:
    for token in order:
        if mask[token >> 5] >> (token & 31) & 1:
            return token
    words = np.flatnonzero(mask)
    if not len(words):
        return None
    word = int(mask[words[0]]) & 0xFFFFFFFF
    return int(words[0]) * 32 + (word & -word).bit_length() - 1
