"""Runner for every other model that transformers can generate with: a cache of the model's own per sequence.

For recurrent, hybrid and vision-language models. It takes the steps that `generate` takes, one sequence
after the other: the whole prompt at once, then token by token. Exact rather than fast.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stack.engine.adapters.modules import ModuleBank, counted, linear_modules
from stack.engine.base import RunnerAdapters, Segment, Stop
from stack.engine.runners.loading import is_multimodal, load_model
from stack.errors import BadRequest

PROMPT_LONG = ("token_type_ids", "mm_token_type_ids")  # inputs with an entry for each token


@dataclass(slots=True)
class Progress:
    """One slot: its tokens, and what `generate` would carry from step to step (cache, mask, positions)."""

    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    media: Mapping[str, Tensor] | None = None


class SequenceRunner:
    """A `Runner` over any transformers model with a generation head."""

    reuses_prefixes = False  # a recurrent state has no positions to go back to

    def __init__(self, model: Any, slots: int, context_length: int) -> None:
        self.slots, self.context_length = slots, context_length
        self._model = model
        self._cache_name = "cache_params" if "mamba" in type(model).__name__.lower() else "past_key_values"
        self._inputs = set(inspect.signature(model.forward).parameters)
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
    ) -> SequenceRunner:
        return cls(load_model(folder, config, dtype, device), slots, context_length)

    @torch.inference_mode()
    def forward(self, segments: Sequence[Segment], stop: Stop | None = None) -> Tensor:
        """Chunks of a prompt are only collected until its last one, which computes them all.

        It does not stop: a state that has moved on in some layers cannot go back.
        """
        logits = [row for segment in segments if (row := self._advance(segment)) is not None]
        return torch.stack(logits) if logits else torch.empty(0, self.vocab_size)

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        raise NotImplementedError("caches of single sequences are not copied; see reuses_prefixes")

    def _adopt(self) -> None:
        """Find the number of logits, and whether two sequences at a time disturb each other."""
        self._sequences = [Progress(), Progress()]
        head, more = Segment(0, 0, [1, 2, 3]), Segment(0, 3, [4])
        modules = linear_modules(self._model)
        with counted(modules) as calls:
            self.vocab_size = self.forward([head]).shape[-1]
        if not is_multimodal(self._model.config):
            called = {name: module for name, module in modules.items() if calls[name]}
            self._bank = ModuleBank(called, None, self._model.dtype, self._model.device)
        alone = self.forward([more])[0]
        self.forward([head, Segment(1, 0, [5, 6])])
        if not torch.allclose(self.forward([more])[0], alone, rtol=0, atol=1e-2 * float(alone.std())):
            raise BadRequest(
                f"{type(self._model).__name__} keeps state in its layers instead of a cache; "
                "such models are not served"
            )
        self._sequences = [Progress() for _ in range(self.slots)]

    def _advance(self, segment: Segment) -> Tensor | None:
        if segment.start == 0:
            self._sequences[segment.slot] = Progress(media=segment.media)
        sequence = self._sequences[segment.slot]
        if segment.start != len(sequence.tokens):
            raise ValueError(f"slot {segment.slot} is at {len(sequence.tokens)}, not at {segment.start}")
        sequence.tokens.extend(segment.tokens)
        if not segment.wants_logits:
            return None
        first = sequence.computed == 0
        fresh = len(sequence.tokens) - sequence.computed
        if first:
            sequence.state = self._begin(sequence)
        model = self._model
        inputs = model.prepare_inputs_for_generation(
            torch.tensor([sequence.tokens], device=model.device),
            next_sequence_length=None if first else fresh,
            is_first_iteration=first,
            **sequence.state,
        )
        with self._adapted(segment):
            out = model(**inputs, return_dict=True)
        sequence.state = model._update_model_kwargs_for_generation(out, sequence.state)
        sequence.computed = len(sequence.tokens)
        logits: Tensor = out.logits[0, -1].float()
        return logits

    def _adapted(self, segment: Segment) -> AbstractContextManager[None]:
        if self._bank is None or segment.adapter is None:
            return nullcontext()
        plan = self._bank.uniform(segment.adapter)
        return self._bank.applied(plan, plan)

    def _begin(self, sequence: Progress) -> dict[str, Any]:
        """What `generate` makes before its first step."""
        from transformers import DynamicCache

        model, length = self._model, len(sequence.tokens)
        state: dict[str, Any] = {
            name: self._on_device(value) for name, value in (sequence.media or {}).items()
        }
        for name in ("input_ids", "attention_mask"):  # the processor's, for the prompt alone
            state.pop(name, None)
        for name in PROMPT_LONG:
            if name in state:  # after a preemption the prompt has the tokens that were generated, too
                state[name] = torch.nn.functional.pad(state[name], (0, length - state[name].shape[-1]))
        if "attention_mask" in self._inputs:
            state["attention_mask"] = torch.ones(1, length, dtype=torch.long, device=model.device)
        if "position_ids" in self._inputs:
            ids = torch.tensor([sequence.tokens], device=model.device)
            state["position_ids"] = model._prepare_position_ids_for_generation(ids, state)
        state["use_cache"] = True
        if model._supports_logits_to_keep():
            state["logits_to_keep"] = 1
        if model._supports_default_dynamic_cache():
            state[self._cache_name] = DynamicCache(config=model.config.get_text_config(decoder=True))
        return state

    def _on_device(self, value: Tensor) -> Tensor:
        dtype = self._model.dtype if value.is_floating_point() else value.dtype
        return value.to(self._model.device, dtype)
