"""Lean forward pass of ModernBERT; see encoder.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stack.engine.embedding.encoder import Loader, Run, UnsupportedModel, activation_of, attend, positions_of


class ModernBertEncoder:
    """ModernBERT (Warner et al. 2024): rotary positions, gated units, mostly local attention."""

    def __init__(self, config: dict[str, Any], load: Loader) -> None:
        load.weights.strip_prefix("embeddings.tok_embeddings.weight")
        eps = config.get("norm_eps", 1e-5)
        layers = config["num_hidden_layers"]
        every = config.get("global_attn_every_n_layers", 3)
        kinds = config.get("layer_types") or [
            "sliding_attention" if i % every else "full_attention" for i in range(layers)
        ]
        self.hidden_size = config["hidden_size"]
        self.max_tokens = config["max_position_embeddings"]
        self._heads = config["num_attention_heads"]
        self._window = config.get("local_attention", 128) // 2
        self._activation = activation_of(config.get("hidden_activation", "gelu"))
        self._theta = {
            "full_attention": _theta(config, "full_attention", "global_rope_theta", 160_000.0),
            "sliding_attention": _theta(config, "sliding_attention", "local_rope_theta", 10_000.0),
        }
        self._words = load.table("embeddings.tok_embeddings.weight")
        self._norm = load.norm("embeddings.norm", eps)
        self._final_norm = load.norm("final_norm", eps)
        self._layers = [
            (
                kinds[i],
                load.norm(f"layers.{i}.attn_norm", eps) if i else _identity,
                load.linear(f"layers.{i}.attn.Wqkv"),
                load.linear(f"layers.{i}.attn.Wo"),
                load.norm(f"layers.{i}.mlp_norm", eps),
                load.linear(f"layers.{i}.mlp.Wi"),
                load.linear(f"layers.{i}.mlp.Wo"),
            )
            for i in range(layers)
        ]

    def __call__(self, ids: Tensor, runs: Sequence[Run]) -> Tensor:
        dtype = self._words.dtype
        positions = positions_of(runs, len(ids), ids.device)
        rotations = {kind: self._rotation(positions, theta) for kind, theta in self._theta.items()}
        x = self._norm(F.embedding(ids, self._words).float())
        for kind, attention_norm, qkv, out, norm, up, down in self._layers:
            rotated = self._rotate(qkv(attention_norm(x).to(dtype)), *rotations[kind])
            attention = F.scaled_dot_product_attention if kind == "full_attention" else self._local
            x = x + out(attend(rotated, runs, self._heads, attention))
            value, gate = up(norm(x).to(dtype)).chunk(2, -1)
            x = x + down(self._activation(value) * gate)
        normed: Tensor = self._final_norm(x)
        return normed

    def _rotation(self, positions: Tensor, theta: float) -> tuple[Tensor, Tensor]:
        dim = self.hidden_size // self._heads
        frequencies = theta ** (-torch.arange(0, dim, 2, device=positions.device) / dim)
        angles = (positions[:, None] * frequencies)[:, None, None]
        return torch.cat([angles.cos()] * 2, -1), torch.cat([-angles.sin(), angles.sin()], -1)

    def _rotate(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary embedding (Su et al. 2021) of queries and keys, in place."""
        split = qkv.view(len(qkv), 3, self._heads, -1)
        qk = split[:, :2].float()
        split[:, :2] = qk * cos + torch.roll(qk, qk.shape[-1] // 2, -1) * sin
        return qkv

    def _local(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention within the window, in blocks: work and memory grow with the length, not its square."""
        length, window, block = q.shape[-2], self._window, 512
        if length <= window + 1:
            return F.scaled_dot_product_attention(q, k, v)
        parts = []
        for start in range(0, length, block):
            rows = torch.arange(start, min(start + block, length), device=q.device)
            low, high = max(0, start - window), min(length, start + block + window)
            near = (rows[:, None] - torch.arange(low, high, device=q.device)).abs() <= window
            keys, values = k[..., low:high, :], v[..., low:high, :]
            parts.append(F.scaled_dot_product_attention(q[..., rows, :], keys, values, attn_mask=near))
        return torch.cat(parts, dim=-2)


def _identity(x: Tensor) -> Tensor:
    return x


def _theta(config: dict[str, Any], kind: str, old_key: str, default: float) -> float:
    rope = (config.get("rope_parameters") or {}).get(kind) or {}
    if rope.get("rope_type", "default") != "default" or config.get("rope_scaling"):
        raise UnsupportedModel("only the default rotary positions")
    return float(rope.get("rope_theta") or config.get(old_key) or default)
