"""A Llama-family model in bfloat16 on the CPU: one C call for a whole forward pass.

Weights and cache lie in the kernels' own layouts (gemm.h, attention.h); nothing else holds a copy of them.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int, c_long, c_void_p, pointer
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from stack.engine.base import Stopped
from stack.engine.runners.kernels.adapters import NativeBank, PassPlan, SiteAdapters
from stack.engine.runners.kernels.build import library
from stack.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Callable

    from stack.engine.base import Segment, Stop
    from stack.engine.runners.llama_weights import LlamaShape, Weights

MAX_ROWS = 512  # tokens in one pass through the layers; longer prompts take several passes
RELEASE = 1024  # a slot that falls back by so many positions gives their memory back


class _Linear(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("k", c_int), ("n", c_int)]


class _Layer(Structure):
    _fields_ = [
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("qkv", _Linear),
        ("output", _Linear),
        ("gate_up", _Linear),
        ("down", _Linear),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("adapters", SiteAdapters * 4),
    ]


class _Attention(Structure):
    _fields_ = [
        ("heads", c_int),
        ("kv_heads", c_int),
        ("head_dim", c_int),
        ("positions", c_int),
        ("scale", c_float),
        ("eps", c_float),
        ("cos", c_void_p),
        ("sin", c_void_p),
    ]


class _Model(Structure):
    _fields_ = [
        ("hidden", c_int),
        ("intermediate", c_int),
        ("vocabulary", c_int),
        ("layer_count", c_int),
        ("max_rows", c_int),
        ("threads", c_int),
        ("attention", _Attention),
        ("embedding", c_void_p),
        ("norm", c_void_p),
        ("head", _Linear),
        ("layers", POINTER(_Layer)),
        ("head_adapters", POINTER(SiteAdapters)),
    ]


class _Piece(NamedTuple):
    """Of a segment, in one pass."""

    slot: int
    start: int
    tokens: Sequence[int]
    adapter: str | None


class _Segment(Structure):
    _fields_ = [("slot", c_int), ("start", c_int), ("count", c_int)]


def _kernels() -> ctypes.CDLL | None:
    kernels = library()
    if kernels is not None:
        kernels.stack_new.restype = c_void_p
        kernels.stack_new.argtypes = [POINTER(_Model)]
        kernels.stack_free.argtypes = [c_void_p]
        kernels.stack_pack.argtypes = [c_void_p, c_int, c_int, c_void_p, c_long]
        kernels.stack_forward.argtypes = [
            c_void_p, c_void_p, c_int, c_void_p, c_void_p, c_int, c_void_p, POINTER(PassPlan), POINTER(c_int),
        ]  # fmt: skip
    return kernels


def pages(size: int, huge: bool) -> mmap.mmap:
    """Zeros that take memory only where they are written.

    Huge pages spare address look-ups where all is read (weights); in a cache they would make every
    slot resident at its first token.
    """
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    advice = getattr(mmap, "MADV_HUGEPAGE" if huge else "MADV_NOHUGEPAGE", None)
    if advice is not None:
        memory.madvise(advice)
    return memory


def zeros(count: int, huge: bool) -> Tensor:
    """bfloat16 [count] in `pages`."""
    return torch.frombuffer(pages(2 * count, huge), dtype=torch.bfloat16)


class NativeLlama:
    """Weights, cache and threads of one model. Not for use by two threads at once."""

    @staticmethod
    def fits(shape: LlamaShape) -> bool:
        """Whether the kernels are there and the model's widths are whole vectors."""
        kernels = _kernels()
        if kernels is None:
            return False
        lanes = kernels.stack_lanes()
        return all(n % lanes == 0 for n in (shape.hidden, shape.intermediate, shape.head_dim // 2))

    def __init__(
        self,
        shape: LlamaShape,
        weights: Weights,
        slots: int,
        context_length: int,
        threads: int,
        base_weight: Callable[[str], Tensor],
    ) -> None:
        kernels = _kernels()
        if kernels is None:
            raise StackError(
                "the CPU kernels are not available; set STACK_KERNELS=true and install a C compiler"
            )
        self._kernels = kernels
        self._lanes: int = kernels.stack_lanes()
        self._vocab_size = shape.vocab_size
        self._head_dim = shape.head_dim
        self._alive: list[Tensor] = []  # everything that C points to
        self._packed = zeros(self._weight_count(shape), huge=True)
        self._used = 0
        self._output = pages(mmap.PAGESIZE, huge=True)
        positions = -(-context_length // self._lanes) * self._lanes
        cache = (2, shape.layers, slots, shape.kv_heads, positions * shape.head_dim)
        self._cache_pages = pages(2 * math.prod(cache), huge=False)
        self._cache = torch.frombuffer(self._cache_pages, dtype=torch.bfloat16).view(cache)
        self._reached = [0] * slots  # positions that have been written since the last release
        self._head_adapters = SiteAdapters()
        self._layers = (_Layer * shape.layers)(*(self._layer(shape, weights, i) for i in range(shape.layers)))
        embedding = self._pack(weights["model.embed_tokens.weight"])
        head = embedding if shape.tied else self._pack(weights["lm_head.weight"])
        cos, sin = shape.rotary(positions)
        model = _Model(
            hidden=shape.hidden,
            intermediate=shape.intermediate,
            vocabulary=shape.vocab_size,
            layer_count=shape.layers,
            max_rows=MAX_ROWS,
            threads=threads,
            attention=_Attention(
                shape.heads,
                shape.kv_heads,
                shape.head_dim,
                positions,
                1 / math.sqrt(shape.head_dim),
                shape.eps,
                self._keep(cos),
                self._keep(sin),
            ),
            embedding=embedding,
            norm=self._keep(weights["model.norm.weight"]),
            head=_Linear(head, None, shape.hidden, shape.vocab_size),
            layers=self._layers,
            head_adapters=pointer(self._head_adapters),
        )
        places = [layer.adapters for layer in self._layers]
        self.adapters = NativeBank(shape, base_weight, self._lanes, places, self._head_adapters, MAX_ROWS)
        self._runner: int | None = kernels.stack_new(byref(model))
        if not self._runner:
            raise MemoryError(f"no memory for the buffers of {MAX_ROWS} tokens and {threads} threads")

    def __del__(self) -> None:
        if getattr(self, "_runner", None):
            self._kernels.stack_free(self._runner)

    def forward(self, segments: Sequence[Segment], stop: Stop | None = None) -> Tensor:
        """float32 [segments that want logits, vocab_size]."""
        logits = self._logits(sum(segment.wants_logits for segment in segments))
        part: list[_Piece] = []
        wanted: list[int] = []
        rows = done = 0
        for segment in segments:
            at, end = 0, segment.start + len(segment.tokens)
            if self._reached[segment.slot] - end >= RELEASE:
                self._release(segment.slot, end)
            self._reached[segment.slot] = max(self._reached[segment.slot], end)
            while at < len(segment.tokens):
                if rows == MAX_ROWS:
                    done += self._pass(part, wanted, logits[done:], stop)
                    part, wanted, rows = [], [], 0
                tokens = segment.tokens[at : at + MAX_ROWS - rows]
                part.append(_Piece(segment.slot, segment.start + at, tokens, segment.adapter))
                rows += len(tokens)
                at += len(tokens)
            if segment.wants_logits:
                wanted.append(rows - 1)
        self._pass(part, wanted, logits[done:], stop)
        return logits

    def _logits(self, rows: int) -> Tensor:
        """Uninitialised float32 [rows, vocab_size], in the memory of the last one if nobody refers to it.

        Fresh memory costs a page fault for every 4 KiB: a tenth of a step with many rows.
        """
        count = rows * self._vocab_size
        if not count:
            return torch.empty(rows, self._vocab_size)
        if len(self._output) < 4 * count or sys.getrefcount(self._output) > 2:
            self._output = pages(4 * count, huge=True)
        return torch.frombuffer(self._output, dtype=torch.float32, count=count).view(rows, -1)

    def _pass(self, part: list[_Piece], wanted: list[int], logits: Tensor, stop: Stop | None) -> int:
        tokens = [token for piece in part for token in piece.tokens]
        plan = None
        if any(piece.adapter is not None for piece in part):
            adapters = [piece.adapter for piece in part for _ in piece.tokens]
            plan = self.adapters.pass_plan(adapters, [adapters[row] for row in wanted])
        stopped = self._kernels.stack_forward(
            self._runner,
            (_Segment * len(part))(*(_Segment(piece.slot, piece.start, len(piece.tokens)) for piece in part)),
            len(part),
            (c_int * len(tokens))(*tokens),
            (c_int * len(wanted))(*wanted),
            len(wanted),
            logits.data_ptr(),
            plan,
            None if stop is None else byref(stop.flag),
        )
        if stopped:
            raise Stopped
        return len(wanted)

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        """Whole blocks of LANES positions; what lies beyond `tokens` is overwritten before it is seen."""
        self._reached[target] = max(self._reached[target], tokens)
        count = -(-tokens // self._lanes) * self._lanes * self._head_dim
        self._cache[:, :, target, :, :count] = self._cache[:, :, source, :, :count]

    def _release(self, slot: int, positions: int) -> None:
        """Give back the memory of a slot's cache beyond `positions`; it reads as zeros from then on."""
        if (
            not hasattr(mmap, "MADV_DONTNEED") or sys.platform != "linux"
        ):  # elsewhere the advice keeps contents
            return
        start = -(-positions // self._lanes) * self._lanes * self._head_dim
        layers, heads = self._cache.shape[1], self._cache.shape[3]
        for which in range(2 * layers * heads):
            head = self._cache[which // (layers * heads), which // heads % layers, slot, which % heads]
            low, high = (2 * (int(head.storage_offset()) + offset) for offset in (start, head.numel()))
            low += -low % mmap.PAGESIZE  # only pages that are this head's alone
            if (length := (high - low) // mmap.PAGESIZE * mmap.PAGESIZE) > 0:
                self._cache_pages.madvise(mmap.MADV_DONTNEED, low, length)
        self._reached[slot] = positions

    def _weight_count(self, shape: LlamaShape) -> int:
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        layer = 2 * queries + 2 * keys + 3 * shape.intermediate
        vocabulary = -(-shape.vocab_size // self._lanes) * self._lanes
        return shape.hidden * (shape.layers * layer + (1 if shape.tied else 2) * vocabulary)

    def _layer(self, shape: LlamaShape, weights: Weights, index: int) -> _Layer:
        prefix = f"model.layers.{index}."
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        return _Layer(
            attention_norm=self._keep(weights[prefix + "input_layernorm.weight"]),
            mlp_norm=self._keep(weights[prefix + "post_attention_layernorm.weight"]),
            q_norm=self._keep(weights.get(attention + "q_norm.weight")),
            k_norm=self._keep(weights.get(attention + "k_norm.weight")),
            qkv=_Linear(
                self._pack(*(weights[f"{attention}{name}_proj.weight"] for name in "qkv")),
                self._keep(weights.together(*(f"{attention}{name}_proj.bias" for name in "qkv"))),
                shape.hidden,
                queries + 2 * keys,
            ),
            output=self._linear(weights, attention + "o_proj"),
            gate_up=self._gate_up(shape, weights, mlp),
            down=self._linear(weights, mlp + "down_proj"),
            keys=self._cache[0, index].data_ptr(),
            values=self._cache[1, index].data_ptr(),
        )

    def _linear(self, weights: Weights, name: str) -> _Linear:
        weight = weights[name + ".weight"]
        n, k = weight.shape
        return _Linear(self._pack(weight), self._keep(weights.get(name + ".bias")), k, n)

    def _gate_up(self, shape: LlamaShape, weights: Weights, mlp: str) -> _Linear:
        """Blocks of gate and up alternate, so that one thread has both at hand for silu(gate) * up."""
        biases = weights.get(mlp + "gate_proj.bias"), weights.get(mlp + "up_proj.bias")
        bias = None
        if biases[0] is not None and biases[1] is not None:
            bias = torch.stack([b.view(-1, self._lanes) for b in biases if b is not None], 1).flatten()
        packed = self._pack(
            weights[mlp + "gate_proj.weight"], weights[mlp + "up_proj.weight"], alternate=True
        )
        return _Linear(packed, self._keep(bias), shape.hidden, 2 * shape.intermediate)

    def _pack(self, *parts: Tensor, alternate: bool = False) -> int:
        """Pack bfloat16 [n, k] parts one after the other, or block by block in turn. Returns the address."""
        start = self._packed.data_ptr() + 2 * self._used
        for index, weight in enumerate(parts):
            n, k = weight.shape
            block = self._lanes * k
            at = start + 2 * block * index if alternate else self._packed.data_ptr() + 2 * self._used
            spacing = block * len(parts) if alternate else block
            self._kernels.stack_pack(weight.data_ptr(), n, k, at, spacing)
            self._used += -(-n // self._lanes) * block
        return start

    def _keep(self, tensor: Tensor | None) -> int | None:
        """The address of a float32 copy that lives as long as this model."""
        if tensor is None:
            return None
        self._alive.append(tensor.float().contiguous())
        return self._alive[-1].data_ptr()
