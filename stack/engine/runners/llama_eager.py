"""A Llama-family model in PyTorch's own operators: any dtype, any device.

Keys and values lie in [slots, kv_heads, positions, head_dim] per layer. All linear layers run over the
tokens of all segments at once; attention runs once for all segments of one token, and once for each longer
one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stack.engine.adapters.bank import Bank, Part, Plan, Site
from stack.engine.runners.kernels.native import pages
from stack.engine.runners.linear import Linear

if TYPE_CHECKING:
    from collections.abc import Callable

    from stack.engine.base import Segment, Stop
    from stack.engine.runners.llama_weights import LlamaShape, Weights

ROUND = 32  # decode attends to a multiple of this many positions, so that few shapes occur
FIRST_POSITIONS = 1024  # what an accelerator's cache begins with


class _Linear(NamedTuple):
    """A linear layer with what adapters add to it."""

    base: Linear
    site: Site

    def __call__(self, x: Tensor, plan: Plan | None) -> Tensor:
        y = self.base(x)
        return y if plan is None else plan.add(self.site, x, y)


class _Layer(NamedTuple):
    attention_norm: Tensor
    qkv: _Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: _Linear
    mlp_norm: Tensor
    gate_up: _Linear
    down: _Linear


class _Batch(NamedTuple):
    """Where the rows of a pass belong. Rows of one-token segments come first."""

    ids: Tensor  # int64 [rows]
    slots: Tensor  # int64 [rows]
    positions: Tensor  # int64 [rows]
    cos: Tensor  # [rows, 1, head_dim]
    sin: Tensor
    singles: int  # one-token segments
    single_slots: slice | Tensor
    length: int  # positions that they attend to
    mask: Tensor  # bool [singles, 1, 1, length]
    chunks: list[tuple[slice, int, int]]  # rows, slot, start
    plan: Plan | None  # which rows want which adapter


class EagerLlama:
    """Weights and cache of one model."""

    def __init__(
        self,
        shape: LlamaShape,
        weights: Weights,
        slots: int,
        context_length: int,
        dtype: torch.dtype,
        device: torch.device,
        base_weight: Callable[[str], Tensor],
    ) -> None:
        self._shape, self._dtype, self._device = shape, dtype, device
        self._slots, self._context_length = slots, context_length
        self._embedding = weights["model.embed_tokens.weight"].to(device)
        self._layers = [self._layer(weights, f"model.layers.{i}.") for i in range(shape.layers)]
        self._norm = weights["model.norm.weight"].to(device)
        head = Linear(self._embedding if shape.tied else weights["lm_head.weight"].to(device))
        self._head = _Linear(head, Site("head", [Part("lm_head", shape.vocab_size)], shape.hidden))
        linears = [linear for layer in self._layers for linear in layer if isinstance(linear, _Linear)]
        self.adapters = Bank([linear.site for linear in (*linears, self._head)], base_weight, dtype, device)
        cos, sin = shape.rotary(context_length)
        self._cos = torch.cat([cos, cos], -1).to(device, dtype)
        self._sin = torch.cat([-sin, sin], -1).to(device, dtype)  # the sign of rotate_half
        self._positions = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        # Zero pages of the CPU take no memory until they are written; elsewhere the cache grows.
        self._grow(context_length if device.type == "cpu" else min(context_length, FIRST_POSITIONS))

    @torch.no_grad()
    def forward(self, segments: Sequence[Segment], stop: Stop | None = None) -> Tensor:
        """float32 [segments that want logits, vocab_size]."""
        end = max(segment.start + len(segment.tokens) for segment in segments)
        if end > self._positions:
            self._grow(min(max(end, 2 * self._positions), self._context_length))
        order = sorted(range(len(segments)), key=lambda i: (len(segments[i].tokens) > 1, segments[i].slot))
        batch = self._batch([segments[i] for i in order])
        x = F.embedding(batch.ids, self._embedding)
        for index, layer in enumerate(self._layers):
            if stop is not None:
                stop.check()
            x = x + self._attend(index, layer, self._rms(x, layer.attention_norm), batch)
            gate, up = layer.gate_up(self._rms(x, layer.mlp_norm), batch.plan).chunk(2, -1)
            x = x + layer.down(F.silu(gate) * up, batch.plan)
        last: dict[int, int] = {}
        row = -1
        for i in order:
            row += len(segments[i].tokens)
            last[i] = row
        asking = [i for i, segment in enumerate(segments) if segment.wants_logits]
        plan = self.adapters.plan([segments[i].adapter for i in asking])
        return self._head(self._rms(x[[last[i] for i in asking]], self._norm), plan).float()

    @torch.no_grad()
    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        for cache in (*self._keys, *self._values):
            cache[target, :, :tokens] = cache[source, :, :tokens]

    def _layer(self, weights: Weights, prefix: str) -> _Layer:
        attention, mlp = prefix + "self_attn.", prefix + "mlp."

        def linear(*names: str) -> _Linear:
            each = [weights[name + ".weight"] for name in names]
            parts = [Part(name, len(weight)) for name, weight in zip(names, each, strict=True)]
            bias = weights.together(*(name + ".bias" for name in names))
            bias = None if bias is None else bias.to(self._device)
            site = Site(names[0].removeprefix(prefix), parts, each[0].shape[1], bias)
            return _Linear(Linear(torch.cat(each).to(self._device), bias), site)

        def norm(name: str) -> Tensor | None:
            weight = weights.get(name + ".weight")
            return None if weight is None else weight.to(self._device)

        return _Layer(
            attention_norm=weights[prefix + "input_layernorm.weight"].to(self._device),
            qkv=linear(*(f"{attention}{name}_proj" for name in "qkv")),
            q_norm=norm(attention + "q_norm"),
            k_norm=norm(attention + "k_norm"),
            output=linear(attention + "o_proj"),
            mlp_norm=weights[prefix + "post_attention_layernorm.weight"].to(self._device),
            gate_up=linear(mlp + "gate_proj", mlp + "up_proj"),
            down=linear(mlp + "down_proj"),
        )

    def _grow(self, positions: int) -> None:
        """Make room for `positions` in every slot, one layer after the other."""
        shape = (self._slots, self._shape.kv_heads, positions, self._shape.head_dim)
        for caches in (self._keys, self._values):
            for index in range(self._shape.layers):
                cache = _zeros(shape, self._dtype, self._device)
                if self._positions:
                    cache[:, :, : self._positions] = caches[index]
                    caches[index] = cache
                else:
                    caches.append(cache)
        self._positions = positions

    def _batch(self, segments: list[Segment]) -> _Batch:
        """`segments` with one token come first, by slot."""
        ids: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        chunks: list[tuple[slice, int, int]] = []
        for segment in segments:
            count = len(segment.tokens)
            if count > 1:
                chunks.append((slice(len(ids), len(ids) + count), segment.slot, segment.start))
            ids.extend(segment.tokens)
            slots.extend([segment.slot] * count)
            positions.extend(range(segment.start, segment.start + count))
        singles = len(segments) - len(chunks)
        where = torch.tensor([ids, slots, positions], device=self._device)
        length = max(positions[:singles], default=0) // ROUND * ROUND + ROUND
        length = min(length, self._positions)
        single_slots: slice | Tensor = where[1, :singles]
        if singles and slots[singles - 1] - slots[0] == singles - 1:
            single_slots = slice(slots[0], slots[0] + singles)  # a view of the cache, no copy
        seen = torch.arange(length, device=self._device)[None] <= where[2, :singles, None]
        cos, sin = self._cos[where[2]][:, None], self._sin[where[2]][:, None]
        plan = None
        if any(segment.adapter is not None for segment in segments):
            plan = self.adapters.plan([segment.adapter for segment in segments for _ in segment.tokens])
        return _Batch(
            where[0],
            where[1],
            where[2],
            cos,
            sin,
            singles,
            single_slots,
            length,
            seen[:, None, None],
            chunks,
            plan,
        )

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self._shape.eps)

    def _attend(self, index: int, layer: _Layer, x: Tensor, batch: _Batch) -> Tensor:
        """Self-attention of all segments. x [rows, hidden]."""
        heads, kv_heads, head_dim = self._shape.heads, self._shape.kv_heads, self._shape.head_dim
        keys, values = self._keys[index], self._values[index]
        qkv = layer.qkv(x, batch.plan).view(len(x), heads + 2 * kv_heads, head_dim)
        q, k, v = qkv[:, :heads], qkv[:, heads:-kv_heads], qkv[:, -kv_heads:]
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._rms(q, layer.q_norm), self._rms(k, layer.k_norm)
        q = q * batch.cos + torch.roll(q, head_dim // 2, -1) * batch.sin
        keys[batch.slots, :, batch.positions] = k * batch.cos + torch.roll(k, head_dim // 2, -1) * batch.sin
        values[batch.slots, :, batch.positions] = v
        out = torch.empty_like(q)
        group, n, t = heads // kv_heads, batch.singles, batch.length
        if n:
            # The query heads of a group stand as rows, so that no key or value is repeated.
            rows = F.scaled_dot_product_attention(
                q[:n].view(n, kv_heads, group, head_dim),
                keys[batch.single_slots, :, :t],
                values[batch.single_slots, :, :t],
                attn_mask=batch.mask.expand(n, 1, group, t),
            )
            out[:n] = rows.reshape(n, heads, head_dim)
        for rows_of, slot, start in batch.chunks:
            end = start + rows_of.stop - rows_of.start
            mask = None
            if start:
                at = torch.arange(end, device=x.device)
                mask = at[None] <= at[start:, None]
            chunk = F.scaled_dot_product_attention(
                q[rows_of].transpose(0, 1)[None],
                keys[slot, :, :end].repeat_interleave(group, 0)[None],
                values[slot, :, :end].repeat_interleave(group, 0)[None],
                attn_mask=mask,
                is_causal=mask is None,
            )
            out[rows_of] = chunk[0].transpose(0, 1)
        return layer.output(out.view(len(x), heads * head_dim), batch.plan)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that on a CPU take memory only where they are written; torch.zeros writes them all."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = pages(math.prod(shape) * dtype.itemsize, huge=False)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
