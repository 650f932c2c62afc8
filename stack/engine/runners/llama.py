"""The lean runner for Llama-family models: no transformers module on the way of a token.

bfloat16 on the CPU runs in C (`kernels`) where there is a compiler, all else in PyTorch's own operators
(`llama_eager`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stack.engine.runners.kernels.native import NativeLlama
from stack.engine.runners.llama_eager import EagerLlama
from stack.engine.runners.llama_weights import LlamaShape, base_weight, open_weights, supports

if TYPE_CHECKING:
    from stack.engine.base import RunnerAdapters, Segment, Stop

log = logging.getLogger(__name__)


class LlamaRunner:
    """A `Runner`. Not for use by two threads at once."""

    reuses_prefixes = True
    supports = staticmethod(supports)

    def __init__(
        self, model: NativeLlama | EagerLlama, slots: int, context_length: int, vocab_size: int
    ) -> None:
        self.slots = slots
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.model = model
        self.adapters: RunnerAdapters | None = model.adapters

    @classmethod
    def open(
        cls,
        folder: Path,
        dtype: torch.dtype,
        context_length: int,
        slots: int,
        threads: int = 1,
        device: torch.device | str = "cpu",
    ) -> LlamaRunner:
        """Load a folder of config.json and safetensors that `supports` accepts.

        `threads` are the CPU threads that compute; the kernels have their own beside PyTorch's.
        """
        from transformers import AutoConfig

        device = torch.device(device)
        shape = LlamaShape.of(AutoConfig.from_pretrained(folder, local_files_only=True))
        native = dtype == torch.bfloat16 and device.type == "cpu" and NativeLlama.fits(shape)
        if device.type == "cpu":
            torch.set_num_threads(threads)
        with open_weights(folder, dtype) as weights:
            model: NativeLlama | EagerLlama
            if native:
                model = NativeLlama(shape, weights, slots, context_length, threads, base_weight(folder))
            else:
                model = EagerLlama(shape, weights, slots, context_length, dtype, device, base_weight(folder))
        log.info("%s: %s, %s, %d threads", folder.name, type(model).__name__, dtype, threads)
        return cls(model, slots, context_length, shape.vocab_size)

    def forward(self, segments: Sequence[Segment], stop: Stop | None = None) -> Tensor:
        """Raises ValueError for what would read or write outside of the cache or the vocabulary."""
        for segment in segments:
            end = segment.start + len(segment.tokens)
            if not 0 <= segment.slot < self.slots:
                raise ValueError(f"slot {segment.slot} is not one of {self.slots}")
            if not 0 <= segment.start < end <= self.context_length:
                raise ValueError(
                    f"positions [{segment.start}, {end}) are not in a context of {self.context_length}"
                )
            if min(segment.tokens) < 0 or max(segment.tokens) >= self.vocab_size:
                raise ValueError(f"a token is not in the vocabulary of {self.vocab_size}")
        return self.model.forward(segments, stop)

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        self.model.copy_prefix(source, target, tokens)
