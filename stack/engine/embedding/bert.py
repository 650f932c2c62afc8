"""Lean forward passes of BERT, RoBERTa, XLM-R, CamemBERT, MPNet and DistilBERT; see encoder.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stack.engine.embedding.encoder import Loader, Run, UnsupportedModel, activation_of, attend, positions_of


class _Names(NamedTuple):
    """What a post-norm family calls its tensors."""

    layer: str
    qkv: tuple[str, str, str]
    out: str
    attention_norm: str
    up: str
    down: str
    norm: str


_BERT = _Names(
    layer="encoder.layer.{}.",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    norm="output.LayerNorm",
)
FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "mpnet": _BERT._replace(
        qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        out="attention.attn.o",
        attention_norm="attention.LayerNorm",
    ),
    "distilbert": _Names(
        layer="transformer.layer.{}.",
        qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        out="attention.out_lin",
        attention_norm="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        norm="output_layer_norm",
    ),
}
_DISTILBERT_KEYS = {
    "hidden_size": "dim",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
    "hidden_act": "activation",
}


class PostNormEncoder:
    """BERT (Devlin et al. 2018) and its kin: learned positions, norms after the residual sums."""

    def __init__(self, config: dict[str, Any], load: Loader) -> None:
        family = config["model_type"]
        names = FAMILIES[family]
        if family == "distilbert":
            config = config | {
                key: config[theirs] for key, theirs in _DISTILBERT_KEYS.items() if theirs in config
            }
        if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
            raise UnsupportedModel("only absolute positions and bidirectional attention")
        load.weights.strip_prefix("embeddings.word_embeddings.weight")
        eps = config.get("layer_norm_eps", 1e-12)
        self.hidden_size = config["hidden_size"]
        self._heads = config["num_attention_heads"]
        self._activation = activation_of(config["hidden_act"])
        self._words = load.table("embeddings.word_embeddings.weight")
        # Positions of the RoBERTa family begin after the padding token's id.
        offset = {"bert": 0, "distilbert": 0, "mpnet": 2}.get(family, config.get("pad_token_id", 1) + 1)
        positions = load.table("embeddings.position_embeddings.weight").float()[offset:]
        if "embeddings.token_type_embeddings.weight" in load.weights:
            positions = positions + load.table("embeddings.token_type_embeddings.weight")[0]
        self._position_vectors = positions.to(load.dtype)
        self.max_tokens = len(positions)
        self._norm = load.norm("embeddings.LayerNorm", eps)
        self._layers = []
        for i in range(config["num_hidden_layers"]):
            layer = names.layer.format(i)
            self._layers.append(
                (
                    load.linear(*(layer + name for name in names.qkv)),
                    load.linear(layer + names.out),
                    load.norm(layer + names.attention_norm, eps),
                    load.linear(layer + names.up),
                    load.linear(layer + names.down),
                    load.norm(layer + names.norm, eps),
                )
            )
        self._bias: Tensor | None = None
        if family == "mpnet":
            self._bias = load.table("encoder.relative_attention_bias.weight")

    def __call__(self, ids: Tensor, runs: Sequence[Run]) -> Tensor:
        dtype = self._words.dtype
        positions = F.embedding(positions_of(runs, len(ids), ids.device), self._position_vectors)
        x = self._norm(F.embedding(ids, self._words).float() + positions)
        attention = self._attention()
        for qkv, out, attention_norm, up, down, norm in self._layers:
            x = attention_norm(x + out(attend(qkv(x.to(dtype)), runs, self._heads, attention)))
            x = norm(x + down(self._activation(up(x.to(dtype)))))
        return x

    def _attention(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        table = self._bias
        if table is None:
            return F.scaled_dot_product_attention
        biases: dict[int, Tensor] = {}  # the same for all layers

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            length = q.shape[-2]
            if length not in biases:
                biases[length] = _mpnet_bias(table, length)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=biases[length])

        return attention


def _mpnet_bias(table: Tensor, length: int) -> Tensor:
    """MPNet's relative position bias [1, heads, length, length]: T5's buckets, up to a distance of 128."""
    buckets = len(table) // 2
    exact = buckets // 2
    offset = torch.arange(length)[:, None] - torch.arange(length)[None]
    distance = offset.abs()
    far = (
        exact + (torch.log(distance.clamp(min=1) / exact) / math.log(128 / exact) * (buckets - exact)).long()
    )
    bucket = torch.where(distance < exact, distance, far.clamp(max=buckets - 1)) + (offset < 0) * buckets
    return table[bucket.to(table.device)].permute(2, 0, 1)[None]
