"""LoRA adapters beside the kernels' weights, in the kernels' layout (gemm.h, llama.c)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_int, c_void_p
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from stack.engine.adapters.bank import Addition, Bank, Part, Site

if TYPE_CHECKING:
    from stack.engine.runners.llama_weights import LlamaShape

KINDS = ("qkv", "output", "gate_up", "down", "head")


class SiteAdapters(Structure):
    """`Adapters` of llama.c."""

    _fields_ = [
        ("a", c_void_p),
        ("b", c_void_p),
        ("scale", c_void_p),
        ("capacity", c_int),
        ("scaled", c_int),
    ]


class _Range(Structure):
    _fields_ = [("low", c_int), ("high", c_int)]


class PassPlan(Structure):
    """`Plan` of llama.c."""

    _fields_ = [
        ("rows", POINTER(c_int)),
        ("wanted", POINTER(c_int)),
        ("owners", c_void_p * len(KINDS)),
        ("ranks", _Range * len(KINDS)),
        ("inner", c_void_p),
    ]


class NativeBank(Bank):
    """A bank in bfloat16, its outputs in whole blocks of lanes.

    a is [capacity / lanes, inputs / 2, lanes, 2], b [outputs / lanes, capacity / 2, lanes, 2].
    """

    def __init__(
        self,
        shape: LlamaShape,
        weight: Callable[[str], Tensor],
        lanes: int,
        places: Sequence[Sequence[SiteAdapters]],
        head: SiteAdapters,
        max_rows: int,
    ) -> None:
        """`places` are what C reads, for each layer's linear layers."""
        self.unit = lanes
        self._max_rows = max_rows
        self._places: dict[Site, SiteAdapters] = {}
        for index, layer in enumerate(places):
            self._places |= dict(zip(_layer_sites(shape, index), layer, strict=True))
        self._places[Site("head", [Part("lm_head", shape.vocab_size)], shape.hidden)] = head
        self._inner = torch.empty(0, dtype=torch.bfloat16)
        super().__init__(list(self._places), weight, torch.bfloat16, torch.device("cpu"))

    def pass_plan(self, rows: Sequence[str | None], wanted: Sequence[str | None]) -> PassPlan | None:
        """For rows that want these adapters; None when none wants any. Void once the bank changes."""
        active = {key for key in rows if key is not None}
        if not active:
            return None
        plan = PassPlan(_numbers(self, rows), _numbers(self, wanted), inner=self._inner.data_ptr())
        for index, kind in enumerate(KINDS):
            ranges = [self.ranks[kind].ranges[key] for key in active & self.ranks[kind].ranges.keys()]
            if ranges:
                plan.owners[index] = self.owners[kind].data_ptr()
                plan.ranks[index] = _Range(
                    min(taken.low for taken in ranges), max(taken.high for taken in ranges)
                )
        return plan

    def _shapes(self, site: Site, ranks: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        blocks, lanes = -(-site.outputs // self.unit), self.unit
        return (ranks // lanes, site.inputs // 2, lanes, 2), (blocks, ranks // 2, lanes, 2)

    def _views(self, a: Tensor, b: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
        return a[low // self.unit : high // self.unit], b[:, low // 2 : high // 2]

    def _laid_out(self, site: Site, added: Addition) -> Addition:
        ranks = -(-added.ranks // self.unit) * self.unit
        a = F.pad(added.a, (0, 0, 0, ranks - added.ranks))
        b = self._ordered(site, F.pad(added.b, (0, 0, 0, ranks - added.ranks)))
        scale = None if added.scale is None else self._ordered(site, added.scale[None])[0].contiguous()
        return Addition(ranks, self._packed(a), self._packed(b.T), scale)

    def _ordered(self, site: Site, columns: Tensor) -> Tensor:
        """[n, outputs] in whole blocks, those of gate and up in turn."""
        columns = F.pad(columns, (0, -columns.shape[1] % self.unit))
        if site.kind != "gate_up":
            return columns
        return columns.view(len(columns), 2, -1, self.unit).transpose(1, 2).flatten(1)

    def _packed(self, matrix: Tensor) -> Tensor:
        """[n, k] -> bfloat16 [n / lanes, k / 2, lanes, 2]."""
        n, k = matrix.shape
        blocks = matrix.to(torch.bfloat16).reshape(n // self.unit, self.unit, k // 2, 2)
        return blocks.transpose(1, 2).contiguous()

    def _changed(self, site: Site) -> None:
        place = self._places[site]
        place.a, place.b, place.scale = (
            None if tensor is None else tensor.data_ptr() for tensor in (site.a, site.b, site.scale)
        )
        place.capacity = self.ranks[site.kind].capacity
        place.scaled = 0 if site.scale is None else len(site.scale)
        most = max(ranks.capacity for ranks in self.ranks.values())
        if len(self._inner) < most * self._max_rows:
            self._inner = torch.empty(most * self._max_rows, dtype=torch.bfloat16)


def _numbers(bank: Bank, adapters: Sequence[str | None]) -> ctypes.Array[c_int]:
    return (c_int * len(adapters))(*(-1 if key is None else bank.numbers[key] for key in adapters))


def _layer_sites(shape: LlamaShape, index: int) -> list[Site]:
    attention, mlp = f"model.layers.{index}.self_attn.", f"model.layers.{index}.mlp."
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    qkv = [Part(f"{attention}{name}_proj", queries if name == "q" else keys) for name in "qkv"]
    gate_up = [Part(f"{mlp}{name}_proj", shape.intermediate) for name in ("gate", "up")]
    return [
        Site("qkv", qkv, shape.hidden),
        Site("output", [Part(f"{attention}o_proj", shape.hidden)], queries),
        Site("gate_up", gate_up, shape.hidden),
        Site("down", [Part(f"{mlp}down_proj", shape.hidden)], shape.intermediate),
    ]
