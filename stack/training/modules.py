"""The linear layers of a model, by the names and shapes of its tensors: what LoRA may be put on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

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
    counts: Mapping[str, int] = field(default_factory=dict)  # layers by `attention.q_proj`, `mlp.up_proj`, …

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> Linears:
        """From the shapes of a model's tensors: a matrix within a numbered layer is a linear layer's."""
        found: dict[str, set[str]] = {"attention": set(), "mlp": set()}
        counts: Counter[str] = Counter()
        widths: set[int] = set()
        for name, shape in shapes.items():
            if len(shape) != 2 or (place := _IN_LAYER.search(name)) is None:
                continue
            path, _, leaf = place["path"].rpartition(".")
            group = "attention" if _ATTENTION.search(path) else "mlp"
            found[group].add(leaf)
            counts[f"{group}.{leaf}"] += 1
            widths.add(shape[1])
        if any(".experts." in name for name in shapes):
            counts.clear()
        return cls(
            frozenset(found["attention"]), frozenset(found["mlp"]), widths=frozenset(widths), counts=counts
        )

    @classmethod
    def adapted(cls, shapes: Mapping[str, tuple[int, ...]]) -> Linears:
        """Those that a LoRA adapter with these tensors changes."""
        paths = [found["path"] for name in shapes if (found := _ADAPTED.match(name))]
        inner = cls.of({f"{path}.weight": (1, 1) for path in paths})
        output = any(_IN_LAYER.search(f"{path}.weight") is None for path in paths)
        return replace(inner, output=output)

    def lacks(self, adapted: Linears) -> str | None:
        """A layer that an adapter leaves out, though a request would name it with the others; None: none.

        Of a model with experts nothing is said: in memory they are no linear layers.
        """
        if not self.counts:
            return None
        if adapted.mlp and (missing := sorted(self.mlp - adapted.mlp)):
            return missing[0]
        return next(
            (name for name, count in adapted.counts.items() if count < self.counts.get(name, 0)), None
        )


def canonical(name: str) -> str:
    return ALIASES.get(name, name)
