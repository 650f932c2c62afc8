"""Attention of ragged segments over a cache with a row for each slot, as a transformers attention function.

A forward pass has all segments' tokens in one row [1, tokens]. In each layer the new keys and values go to
their slots; tokens of decode steps then attend together, each prompt chunk by itself. It keeps the contract
of the attention functions of transformers that take no mask (flash attention's): scaling, sliding_window,
softcap and s_aux (attention sinks) come from the layer.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stack.engine.base import Segment, Stop

NAME = "stack_slots"
ROUND = 32  # lengths are rounded up to it, so that kernels meet few different shapes
SHORT = (
    256  # decode steps up to this length attend together; longer ones with those of at most twice the length
)


class SlotCache:
    """Keys and values of all layers, [slots, heads, context, dim] each, made at a layer's first use."""

    def __init__(self, slots: int, context_length: int) -> None:
        self.slots, self.context_length = slots, context_length
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if index not in self._layers:
            self._layers[index] = (self._new(key), self._new(value))
        return self._layers[index]

    def _new(self, like: Tensor) -> Tensor:
        shape = (self.slots, like.shape[1], self.context_length, like.shape[3])
        if like.device.type != "cpu":
            return torch.zeros(shape, dtype=like.dtype, device=like.device)
        # The system gives numpy zeroed pages when they are first written: memory grows with what is used.
        size = math.prod(shape) * like.element_size()
        return torch.from_numpy(np.zeros(size, np.uint8)).view(like.dtype).view(shape)

    def clear(self, slot: int) -> None:
        """Masked positions count for nothing, unless they are NaN."""
        for layer in self._layers.values():
            for tensor in layer:
                tensor[slot].zero_()

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        for layer in self._layers.values():
            for tensor in layer:
                tensor[target, :, :tokens] = tensor[source, :, :tokens]


@dataclass(slots=True)
class Decode:
    """Single tokens that attend together. Slots [first, last) are read in place where most take part."""

    tokens: Tensor  # their places among all tokens [n]
    positions: Tensor  # [n]
    slots: Tensor  # [n]
    first: int
    last: int
    length: int


class Step:
    """One forward pass's segments as index tensors; masks are made once and shared by the layers."""

    def __init__(
        self, cache: SlotCache, segments: Sequence[Segment], device: torch.device, stop: Stop | None = None
    ) -> None:
        self.cache = cache
        self.stop = stop
        sizes = [len(segment.tokens) for segment in segments]
        starts = np.cumsum([0, *sizes])
        token_slots = np.repeat([segment.slot for segment in segments], sizes)
        positions = np.concatenate(
            [np.arange(s.start, s.start + n) for s, n in zip(segments, sizes, strict=True)]
        )
        self.slots = torch.from_numpy(token_slots).to(device)
        self.positions = torch.from_numpy(positions).to(device)
        self.decodes = [
            self._decode([(segments[i], int(starts[i])) for i in group]) for group in _groups(segments)
        ]
        self.chunks = [
            (segment, int(start))
            for segment, start in zip(segments, starts, strict=False)
            if len(segment.tokens) > 1
        ]
        self._masks: dict[Any, Tensor] = {}

    def _decode(self, group: list[tuple[Segment, int]]) -> Decode:
        device = self.slots.device
        tokens = torch.tensor([start for _, start in group], device=device)
        slots = [segment.slot for segment, _ in group]
        longest = max(segment.start for segment, _ in group) + 1
        return Decode(
            tokens,
            self.positions[tokens],
            self.slots[tokens],
            min(slots),
            max(slots) + 1,
            min(-(-longest // ROUND) * ROUND, self.cache.context_length),
        )

    def mask(
        self, positions: Tensor, length: int, window: int | None, dtype: torch.dtype, name: Any
    ) -> Tensor:
        """0 where a query at each of `positions` may look, -inf elsewhere; [queries, length]."""
        key = (name, window)
        if key not in self._masks:
            past = positions[:, None] - torch.arange(length, device=positions.device)
            allowed = past >= 0 if window is None else (past >= 0) & (past < window)
            self._masks[key] = torch.zeros(allowed.shape, dtype=dtype, device=positions.device).masked_fill_(
                ~allowed, -math.inf
            )
        return self._masks[key]


def _groups(segments: Sequence[Segment]) -> list[list[int]]:
    """Decode segments by length, so that a short sequence is not padded to a very long one."""
    by_length: dict[int, list[int]] = {}
    for i, segment in enumerate(segments):
        if len(segment.tokens) == 1:
            by_length.setdefault(max(segment.start, SHORT).bit_length(), []).append(i)
    return list(by_length.values())


@dataclass(slots=True)
class Scores:
    """What a layer does between query @ key and softmax."""

    scaling: float | None
    window: int | None
    softcap: float | None
    sinks: Tensor | None  # [query heads]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """query [b, heads, groups, n, dim] with key and value [b, heads, length, dim] -> as query.

        The query heads that share a key head are folded into its queries: nothing is repeated.
        """
        b, heads, groups, n, dim = query.shape
        folded = query.reshape(b, heads, groups * n, dim)
        if self.softcap is None and self.sinks is None:
            bias = mask[:, :, None].expand(-1, -1, groups, -1, -1).reshape(b, 1, groups * n, -1)
            out = F.scaled_dot_product_attention(folded, key, value, attn_mask=bias, scale=self.scaling)
            return out.view(b, heads, groups, n, -1)
        scale = dim**-0.5 if self.scaling is None else self.scaling
        scores = (folded @ key.transpose(-1, -2) * scale).view(b, heads, groups, n, -1)
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        scores = scores.float() + mask[:, :, None]
        if self.sinks is not None:  # a score that takes its share of the softmax and gives nothing
            sink = self.sinks.float().view(1, heads, groups, 1, 1).expand(b, -1, -1, n, 1)
            weights = torch.softmax(torch.cat([scores, sink], -1), -1)[..., :-1]
        else:
            weights = torch.softmax(scores, -1)
        out = weights.to(value.dtype).view(b, heads, groups * n, -1) @ value
        return out.view(b, heads, groups, n, -1)


# Not every model hands further arguments down to its attention, so the step stands beside the call.
_running = threading.local()


@contextmanager
def running(step: Step) -> Iterator[None]:
    """Layers called within, in this thread, attend for this step."""
    _running.step = step
    try:
        yield
    finally:
        del _running.step


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend and write the cache. Shapes:

    query [1, query heads, tokens, dim], key and value [1, heads, tokens, dim]
    -> [1, tokens, query heads, dim]

    Raises Stopped when the step is to end.
    """
    step: Step = _running.step
    if step.stop is not None:
        step.stop.check()
    index = int(module.layer_idx)  # type: ignore[arg-type]  # a module's attribute
    keys, values = step.cache.layer(index, key, value)
    keys[step.slots, :, step.positions] = key[0].transpose(0, 1)
    values[step.slots, :, step.positions] = value[0].transpose(0, 1)
    heads = key.shape[1]
    grouped = query[0].view(heads, -1, *query.shape[2:])  # [heads, groups, tokens, dim]
    out = value.new_empty(query.shape[2], query.shape[1], value.shape[3])
    scores = Scores(scaling, sliding_window, softcap, s_aux)
    for i, decode in enumerate(step.decodes):
        out[decode.tokens] = _attend_decode(step, decode, grouped, keys, values, scores, ("decode", i))
    for segment, at in step.chunks:
        end, size = segment.start + len(segment.tokens), len(segment.tokens)
        mask = step.mask(step.positions[at : at + size], end, sliding_window, query.dtype, at)
        slot = slice(segment.slot, segment.slot + 1)
        chunk = scores.attend(
            grouped[None, :, :, at : at + size], keys[slot, :, :end], values[slot, :, :end], mask[None, None]
        )
        out[at : at + size] = chunk[0].flatten(0, 1).transpose(0, 1)
    return out[None], None


def _attend_decode(
    step: Step, decode: Decode, grouped: Tensor, keys: Tensor, values: Tensor, scores: Scores, name: Any
) -> Tensor:
    """[n, query heads, dim]."""
    query = grouped[:, :, decode.tokens].permute(2, 0, 1, 3)[:, :, :, None]  # [n, heads, groups, 1, dim]
    mask = step.mask(decode.positions, decode.length, scores.window, query.dtype, name)[:, None, None]
    span = decode.last - decode.first
    if span > 2 * len(decode.tokens):
        keys = keys[decode.slots, :, : decode.length]
        values = values[decode.slots, :, : decode.length]
        return scores.attend(query, keys, values, mask)[:, :, :, 0].flatten(1, 2)
    # Reading idle slots between the busy ones costs less than copying the busy ones together.
    rows = decode.slots - decode.first
    padded = query.new_zeros(span, *query.shape[1:]).index_copy_(0, rows, query)
    bias = mask.new_zeros(span, *mask.shape[1:]).index_copy_(0, rows, mask)
    slots = slice(decode.first, decode.last)
    out = scores.attend(padded, keys[slots, :, : decode.length], values[slots, :, : decode.length], bias)
    return out[rows, :, :, 0].flatten(1, 2)
