"""A folder of PEFT's -> the matrices of a LoRA adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stack.models import lora
from stack.models.folders import Folder, check_safetensors


@dataclass(frozen=True, slots=True)
class Lora:
    """What an adapter adds to one linear layer x -> x @ W.T + bias, in float32 on the CPU."""

    a: Tensor  # [rank, in]
    b: Tensor  # [out, rank], already scaled
    magnitude: Tensor | None = None  # [out]: of DoRA

    def applied(self, weight: Callable[[], Tensor]) -> tuple[Tensor, Tensor | None]:
        """(b, scale): the layer's output without bias times `scale` [out], plus x @ a.T @ b.T.

        `weight` is W, float32 [out, in], which only DoRA asks for: m / |W + b a| is the scale of both terms
        (Liu et al. 2024, eq. 5). None means 1.
        """
        if self.magnitude is None:
            return self.b, None
        scale = self.magnitude / torch.linalg.norm(weight() + self.b @ self.a, dim=1)
        return self.b * scale[:, None], scale


def read_adapter(folder: Path) -> dict[str, Lora]:
    """By the module's name in the base model. BadRequest for what is not served."""
    from safetensors.torch import load_file

    check_safetensors(folder / lora.WEIGHTS)
    config = lora.read_config(Folder.local(folder).json(lora.CONFIG), folder.name)
    tensors = load_file(folder / lora.WEIGHTS)
    lora.check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, {}, folder.name)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if (found := lora.part_of(name, folder.name)) is not None:
            parts.setdefault(found[0], {})[found[1]] = tensor.float()
    return {
        module: Lora(
            part["lora_A"],
            part["lora_B"] * config.scaling(module, len(part["lora_A"])),
            part.get("lora_magnitude_vector"),
        )
        for module, part in parts.items()
    }
