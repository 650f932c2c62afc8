"""Parts of the lean encoders: weights from safetensors, packed linears, attention without padding.

All tokens of a batch stand in one row after the other, [tokens, hidden]: linear layers and norms see no
padding, and attention runs once for each group of texts with the same length, as a view of that row. So a
text's vector does not depend on what else is in the batch. The residual stream is float32; the linears
and the attention are in the model's dtype.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from stack.engine.runners.linear import Linear


class Run(NamedTuple):
    """Neighbouring texts of the same length; the first token stands at row `start`."""

    start: int
    texts: int
    length: int
    skip: int = 0  # leading tokens of each text that pooling leaves out

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.texts * self.length)


def runs_of(texts: Iterable[tuple[int, int]]) -> list[Run]:
    """Group neighbours of the same (length, skip)."""
    runs: list[Run] = []
    start = 0
    for (length, skip), group in groupby(texts):
        runs.append(Run(start, len(list(group)), length, skip))
        start = runs[-1].rows.stop
    return runs


class Encoder(Protocol):
    """Token ids [rows] to hidden states float32 [rows, hidden]; rows after the last run mean nothing."""

    hidden_size: int
    max_tokens: int

    def __call__(self, ids: Tensor, runs: Sequence[Run]) -> Tensor: ...


class UnsupportedModel(Exception):
    """This module has no forward pass for a model."""


Activation = Callable[[Tensor], Tensor]


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


_ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu, "gelu_new": _gelu_tanh, "gelu_pytorch_tanh": _gelu_tanh, "relu": F.relu, "silu": F.silu,
}  # fmt: skip


def activation_of(name: str) -> Activation:
    if name not in _ACTIVATIONS:
        raise UnsupportedModel(f"activation {name}")
    return _ACTIVATIONS[name]


class Weights:
    """Tensors of a folder's safetensors files by name, read when asked for."""

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        if index.exists():
            names = set(json.loads(index.read_text())["weight_map"].values())
        else:
            names = {"model.safetensors"}
        self._where: dict[str, Any] = {}
        for name in sorted(names):
            if not (folder / name).exists():
                raise UnsupportedModel(f"{name} is missing")
            file: Any = safe_open(folder / name, framework="pt")
            self._where.update(dict.fromkeys(file.keys(), file))
        self._prefix = ""

    def strip_prefix(self, name: str) -> None:
        """Find `name` below some prefix ("bert.", "model.") and look for all names there."""
        found = min(
            (key for key in self._where if key == name or key.endswith("." + name)), key=len, default=None
        )
        if found is None:
            raise UnsupportedModel(f"there is no tensor {name}")
        self._prefix = found[: -len(name)]

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._where

    def __getitem__(self, name: str) -> Tensor:
        name = self._prefix + name
        if name not in self._where:
            raise UnsupportedModel(f"there is no tensor {name}")
        tensor: Tensor = self._where[name].get_tensor(name)
        return tensor


class Loader:
    """Makes modules of weights in one dtype on one device."""

    def __init__(self, weights: Weights, dtype: torch.dtype, device: torch.device) -> None:
        self.weights, self.dtype, self.device = weights, dtype, device

    def table(self, name: str) -> Tensor:
        return self.weights[name].to(self.device, self.dtype)

    def vector(self, name: str) -> Tensor:
        """A copy: one small view of the file would keep all of it mapped."""
        return self.weights[name].to(self.device, torch.float32, copy=True)

    def linear(self, *names: str) -> Linear:
        """One layer of several with the same input, their outputs side by side."""
        weight = torch.cat([self.weights[name + ".weight"] for name in names])
        bias = None
        if names[0] + ".bias" in self.weights:
            bias = torch.cat([self.weights[name + ".bias"] for name in names]).to(self.device, self.dtype)
        return Linear(weight.to(self.device, self.dtype), bias)

    def norm(self, name: str, eps: float) -> Callable[[Tensor], Tensor]:
        weight = self.vector(name + ".weight")
        bias = self.vector(name + ".bias") if name + ".bias" in self.weights else None
        return lambda x: F.layer_norm(x, weight.shape, weight, bias, eps)


def attend(
    qkv: Tensor, runs: Sequence[Run], heads: int, attention: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Attention of each text to itself. qkv [rows, 3 * hidden]; returns [rows, hidden]."""
    qkv = qkv.view(len(qkv), 3, heads, -1)
    out = qkv.new_empty(len(qkv), heads, qkv.shape[-1])
    out[runs[-1].rows.stop :] = 0
    for run in runs:
        q, k, v = qkv[run.rows].view(run.texts, run.length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        out[run.rows].view(run.texts, run.length, heads, -1).copy_(attention(q, k, v).transpose(1, 2))
    return out.flatten(1)


def positions_of(runs: Sequence[Run], rows: int, device: torch.device) -> Tensor:
    """int64 [rows]: each token's position in its text; 0 in the rows after the last text."""
    positions = torch.zeros(rows, dtype=torch.int64, device=device)
    for run in runs:
        positions[run.rows] = torch.arange(run.length, device=device).repeat(run.texts)
    return positions


def rounded(tokens: int) -> int:
    """Rows of a batch with so many tokens: one of eight sizes an octave.

    oneDNN keeps something for every size it has seen, between which the heap falls to pieces: with
    batches of all sizes a process grows by hundreds of megabytes.
    """
    step = max(16, (1 << tokens.bit_length()) >> 4)
    return -(-tokens // step) * step
