"""Runner for attention-only transformers causal LMs: all sequences in one pass, one slotted cache."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stack.engine.adapters.modules import ModuleBank, counted, linear_modules
from stack.engine.base import RunnerAdapters, Segment, Stop
from stack.engine.runners import slot_attention
from stack.engine.runners.linear import pack_linears
from stack.engine.runners.loading import is_multimodal, load_model
from stack.engine.runners.slot_attention import SlotCache, Step

log = logging.getLogger(__name__)

CHECK_TOKENS = 24
LAYER_TYPES = {"full_attention", "sliding_attention"}


class Unservable(Exception):
    """This model cannot be computed with slots; SequenceRunner can."""


class SlotRunner:
    """A `Runner` over a transformers model whose attention is replaced by `slot_attention`.

    Raises Unservable when its logits are not those of the model as it was.
    """

    reuses_prefixes = True

    def __init__(self, model: Any, slots: int, context_length: int) -> None:
        if why := refuses(model.config, context_length):
            raise Unservable(why)
        self.slots, self.context_length = slots, context_length
        self._model, self._device = model, model.device
        self._cache = SlotCache(slots, context_length)
        self.vocab_size = 0
        self._bank: ModuleBank | None = None
        self._adopt()
        self.adapters: RunnerAdapters | None = self._bank

    @classmethod
    def open(
        cls,
        folder: Path,
        config: Any,
        dtype: torch.dtype,
        context_length: int,
        slots: int,
        device: torch.device,
    ) -> SlotRunner:
        """Raises Unservable, mostly before it loads the weights."""
        if why := refuses(config, context_length):
            raise Unservable(why)
        return cls(load_model(folder, config, dtype, device), slots, context_length)

    @torch.inference_mode()
    def forward(self, segments: Sequence[Segment], stop: Stop | None = None) -> Tensor:
        tokens = [token for segment in segments for token in segment.tokens]
        ends = torch.tensor([len(segment.tokens) for segment in segments]).cumsum(0) - 1
        wanted = ends[torch.tensor([segment.wants_logits for segment in segments])].to(self._device)
        step = Step(self._cache, segments, self._device, stop)
        with slot_attention.running(step), self._adapted(segments):
            out = self._model(
                input_ids=torch.tensor([tokens], device=self._device),
                position_ids=step.positions[None],
                use_cache=False,
                logits_to_keep=wanted,
            )
        logits: Tensor = out.logits[0].float()
        broken = ~torch.isfinite(logits.amax(-1))
        if bool(broken.any()):
            asking = [segment for segment in segments if segment.wants_logits]
            for segment in (asking[int(i)] for i in broken.nonzero()):
                self._cache.clear(segment.slot)
        return logits

    def _adapted(self, segments: Sequence[Segment]) -> AbstractContextManager[None]:
        bank = self._bank
        if bank is None or not any(segment.adapter for segment in segments):
            return nullcontext()
        rows = [segment.adapter for segment in segments for _ in segment.tokens]
        wanted = [segment.adapter for segment in segments if segment.wants_logits]
        return bank.applied(bank.plan(rows), bank.plan(wanted))

    @torch.inference_mode()
    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        self._cache.copy_prefix(source, target, tokens)

    @torch.inference_mode()
    def _adopt(self) -> None:
        """Replace attention and pack the weights; compare what a few tokens give before and after."""
        from transformers import AttentionInterface

        vocabulary = self._model.config.get_text_config(decoder=True).vocab_size
        tokens = [(7919 * i + 13) % vocabulary for i in range(min(CHECK_TOKENS, self.context_length))]
        expected = self._model(input_ids=torch.tensor([tokens], device=self._device), use_cache=False).logits
        expected = expected[0, -1].float()
        self.vocab_size = len(expected)
        AttentionInterface.register(slot_attention.NAME, slot_attention.attention)
        self._model.set_attn_implementation(slot_attention.NAME)
        pack_linears(self._model)
        half, last = len(tokens) // 2, self.slots - 1
        try:
            self.forward([Segment(last, 0, tokens[:half], wants_logits=False)])
            others = [Segment(0, 0, tokens[:3])] if last else []
            segments = [*others, Segment(last, half, tokens[half:-1])]
            modules = linear_modules(self._model)
            with counted(modules) as calls:
                self.forward(segments)
            logits = self.forward([Segment(last, len(tokens) - 1, tokens[-1:])])[0]
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise Unservable(f"with slots it raises {error!r}") from error
        off = float((logits - expected).norm() / (expected - expected.mean()).norm())
        limit = 1e-3 if self._model.dtype == torch.float32 else 0.1
        if not off < limit:
            raise Unservable(f"with slots its logits are off by {off:.2g}")
        rows = sum(len(segment.tokens) for segment in segments)
        self._bank = self._bank_of(modules, calls, rows, len(segments))
        log.info("%s: slots, relative error of logits %.1e", type(self._model).__name__, off)

    def _bank_of(
        self, modules: dict[str, nn.Module], calls: Mapping[str, Counter[int]], rows: int, wanted: int
    ) -> ModuleBank:
        """Adapters may change what is called once in a pass, with all rows; the head with the wanted ones."""
        output = self._model.get_output_embeddings()
        head = next((name for name, module in modules.items() if module is output), None)
        sites = {
            name: module
            for name, module in modules.items()
            if calls[name] == Counter([wanted if name == head else rows])
        }
        return ModuleBank(sites, head, self._model.dtype, self._device)


def refuses(config: Any, context_length: int) -> str | None:
    """Why a model's config shows that slots would not be exact; None when it does not."""
    text = config.get_text_config(decoder=True)
    if is_multimodal(config):
        return "it takes images"
    if others := set(getattr(text, "layer_types", None) or ()) - LAYER_TYPES:
        return f"it has layers of type {', '.join(sorted(others))}"
    if getattr(text, "num_kv_shared_layers", 0):
        return "its layers share keys and values"
    rope = getattr(text, "rope_parameters", None) or {}
    for parameters in rope.values() if all(isinstance(value, dict) for value in rope.values()) else [rope]:
        kind, trained = parameters.get("rope_type"), parameters.get("original_max_position_embeddings")
        # Those turn all positions differently once the longest sequence of the pass exceeds a length.
        if kind == "dynamic" or (kind == "longrope" and context_length > (trained or 0)):
            return f"its positions are of type {kind}"
    return None
