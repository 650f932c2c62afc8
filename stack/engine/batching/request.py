"""One generation while it is served: its tokens, its text, and why it ends."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stack.engine.base import FinishReason, Generation, Output, Segment, TokenLogprob
from stack.engine.batching.outputs import OutputStream
from stack.engine.batching.sampling import Logprobs, Row, check_sampling
from stack.engine.batching.text_stream import TextStream
from stack.errors import BadRequest, ContextTooLong
from stack.tracing import recorded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stack.engine.batching.prefix import Slot
    from stack.engine.batching.text_stream import Decode, TokenTexts

MAX_STOP_STRINGS = 64
MAX_TOP_LOGPROBS = 128


class Request:
    """Belongs to the compute thread; `cancelled` and `ended` are guarded by the batcher's lock."""

    def __init__(
        self, generation: Generation, context_length: int, decode: Decode, texts: TokenTexts
    ) -> None:
        self.generation = generation
        self.outputs = OutputStream()
        self.tokens = list(generation.prompt)
        self.prompt_tokens = len(self.tokens)
        room = max(1, context_length - self.prompt_tokens)
        self.limit = min(generation.max_tokens or room, room)
        self.text = TextStream(decode, generation.stop)
        self.texts = texts
        self.row = Row.of(generation.sampling, self.tokens, generation.top_logprobs)
        self.slot: Slot | None = None
        self.cancelled = False  # the consumer is gone
        self.ended = False  # no longer counted among those that wait or hold a slot
        self.arrived = time.perf_counter()
        self.admitted = 0.0  # when it got its slot, the first time
        self.trace = recorded()  # its spans' parent
        self.first_token: float | None = None

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def media(self) -> Mapping[str, object] | None:
        return self.generation.media

    def segment(self, slot: Slot, tokens: int) -> Segment:
        """The next so many tokens that are not in the cache; logits only when they are the last ones."""
        start, end = slot.computed, slot.computed + tokens
        return Segment(
            slot.index,
            start,
            self.tokens[start:end],
            wants_logits=end == len(self.tokens),
            media=self.generation.media if start == 0 else None,
            adapter=self.generation.adapter,
        )

    def advance(self, token: int, logprobs: Logprobs | None, end_tokens: frozenset[int]) -> Output:
        """Take a token that was drawn. Whatever the constraint raises comes through."""
        self.tokens.append(token)
        if self.row.seen is not None:
            self.row.seen.add(token)
        output = Output(token_ids=[token])
        if logprobs is not None:
            output.logprobs.append(self._with_texts(token, logprobs))
        if token in end_tokens:
            output.finish = FinishReason.STOP
        else:
            output.text = self.text.push(token)
            output.finish = self._finish(token)
        if output.finish is not None and not self.text.stopped:
            output.text += self.text.flush()
            if self.text.stopped:
                output.finish = FinishReason.STOP
        return output

    def _finish(self, token: int) -> FinishReason | None:
        if self.text.stopped:
            return FinishReason.STOP
        constraint = self.generation.constraint
        if constraint is not None:
            constraint.accept(token)
            if constraint.complete:
                return FinishReason.STOP
        return FinishReason.LENGTH if self.generated >= self.limit else None

    def _with_texts(self, token: int, logprobs: Logprobs) -> TokenLogprob:
        top: dict[str, float] = {}
        for candidate, value in logprobs.top:
            top.setdefault(self.texts[candidate], value)  # of two tokens with one text, the likelier
        return TokenLogprob(self.texts[token], logprobs.chosen, top)


def check(generation: Generation, context_length: int, vocab_size: int) -> None:
    """Raises BadRequest for what cannot be computed, before anything is."""
    prompt = generation.prompt
    if not prompt:
        raise BadRequest("the prompt is empty; send at least one token of text")
    if len(prompt) > context_length:
        raise ContextTooLong(len(prompt), context_length)
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        raise BadRequest(f"the prompt has a token id outside of the model's vocabulary of {vocab_size}")
    if generation.max_tokens < 0:
        raise BadRequest(f"max_tokens is {generation.max_tokens}; it must be 0 (up to the context) or more")
    if len(generation.stop) > MAX_STOP_STRINGS:
        raise BadRequest(f"{len(generation.stop)} stop strings; at most {MAX_STOP_STRINGS} are taken")
    if "" in generation.stop:
        raise BadRequest("a stop string is empty; leave it out")
    if generation.top_logprobs is not None and not 0 <= generation.top_logprobs <= MAX_TOP_LOGPROBS:
        raise BadRequest(
            f"top_k of logprobs is {generation.top_logprobs}; it must be 0 to {MAX_TOP_LOGPROBS}"
        )
    check_sampling(generation.sampling)
