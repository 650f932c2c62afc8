"""The linear layers of a model, by the names and shapes of its tensors: what LoRA may be put on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

ALIASES = {"output_proj": "o_proj"}
"""torchtune's names for what transformers calls otherwise."""

_IN_LAYER = re.compile(r"(?:^|\.)\d+\.(?P<path>.+)\.weight\Z")
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_ADAPTED = re.compile(r"(?:base_model\.model\.)?(?P<path>.+)\.lora_A(?:\.\w+)?\.weight\Z")


@dataclass(frozen=True, slots=True)
class Linears:
    """Names of linear layers, without the path before them; `output` is the one that gives logits."""

    attention: frozenset[str]
    mlp: frozenset[str]
    output: bool = True  # a head that shares the embedding's weights counts
    widths: frozenset[int] = frozenset()  # inputs of the layers

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> Linears:
        """From the shapes of a model's tensors: a matrix within a numbered layer is a linear layer's."""
        attention: set[str] = set()
        mlp: set[str] = set()
        widths: set[int] = set()
        for name, shape in shapes.items():
            if len(shape) != 2 or (found := _IN_LAYER.search(name)) is None:
                continue
            path, _, leaf = found["path"].rpartition(".")
            (attention if _ATTENTION.search(path) else mlp).add(leaf)
            widths.add(shape[1])
        return cls(frozenset(attention), frozenset(mlp), widths=frozenset(widths))

    @classmethod
    def adapted(cls, shapes: Mapping[str, tuple[int, ...]]) -> Linears:
        """Those that a LoRA adapter with these tensors changes."""
        paths = [found["path"] for name in shapes if (found := _ADAPTED.match(name))]
        inner = cls.of({f"{path}.weight": (1, 1) for path in paths})
        return cls(
            inner.attention, inner.mlp, any(_IN_LAYER.search(f"{path}.weight") is None for path in paths)
        )


def canonical(name: str) -> str:
    return ALIASES.get(name, name)
