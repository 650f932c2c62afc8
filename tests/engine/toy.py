"""A Runner small enough to check every step: its logits are a function of all tokens in a slot's cache."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from stack.engine.base import Segment, Stop, Stopped

VOCABULARY = 64
END = 63


def next_logits(tokens: Sequence[int]) -> Tensor:
    """Depends on every token and its place, so that a wrong cache shows at once. Never prefers END."""
    seed = 0
    for token in tokens:
        seed = (seed * 1_000_003 + token + 1) % (1 << 61)
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed))
    logits[END] = -20.0
    return logits


def greedy(prompt: Sequence[int], count: int) -> list[int]:
    """What a model alone would say."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(next_logits(tokens).argmax()))
    return tokens[len(prompt) :]


class ToyRunner:
    """Keeps the tokens of each slot where others keep keys and values; checks what it is asked."""

    vocab_size = VOCABULARY
    adapters = None

    def __init__(
        self, slots: int = 4, context_length: int = 256, reuses_prefixes: bool = True, step_s: float = 0.0
    ) -> None:
        self.slots, self.context_length, self.reuses_prefixes = slots, context_length, reuses_prefixes
        self.step_s = step_s
        self.cache: list[list[int]] = [[] for _ in range(slots)]
        self.steps: list[list[Segment]] = []
        self.stopped: list[list[Segment]] = []  # passes that were given up
        self.copies: list[tuple[int, int, int]] = []
        self.before: Callable[[Sequence[Segment]], None] = lambda segments: None
        self.go = threading.Event()  # cleared: the next forward waits, so that a test can set a scene
        self.go.set()
        self.held = False  # whether a forward waits for it

    def forward(self, segments: Sequence[Segment], stop: Stop | None = None) -> Tensor:
        self.held = not self.go.is_set()
        assert self.go.wait(10)
        self.held = False
        assert len({segment.slot for segment in segments}) == len(segments) > 0
        if stop is not None and stop.flag.value:
            self.stopped.append(list(segments))
            for segment in segments:  # what the first layers have written
                self.cache[segment.slot][segment.start :] = [END] * len(segment.tokens)
            raise Stopped
        self.steps.append(list(segments))
        self.before(segments)
        time.sleep(self.step_s)
        logits = []
        for segment in segments:
            cache = self.cache[segment.slot]
            assert segment.tokens
            assert segment.start <= len(cache), "positions before start are not in the cache"
            assert self.reuses_prefixes or segment.start in (0, len(cache))
            cache[segment.start :] = segment.tokens
            assert len(cache) <= self.context_length
            if segment.wants_logits:
                logits.append(next_logits(cache))
        return torch.stack(logits) if logits else torch.empty(0, VOCABULARY)

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        assert source != target
        assert tokens <= len(self.cache[source])
        self.copies.append((source, target, tokens))
        self.cache[target] = self.cache[source][:tokens]

    @property
    def computed(self) -> int:
        return sum(len(segment.tokens) for step in self.steps for segment in step)


class StopAt(Stop):
    """Ends a pass that asks it between its layers, before the one with this number."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layers = layer

    def check(self) -> None:
        self.set(self.layers == 0)
        self.layers -= 1
        super().check()


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """Token i is a letter: text and tokens are the same length."""
    letters = [chr(ord("A") + i) if i < 26 else chr(ord("a") + i - 26) for i in range(52)]
    letters += [str(i) for i in range(10)]
    vocabulary = {letter: i for i, letter in enumerate([*letters, "?"])} | {"<end>": END}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="?")
