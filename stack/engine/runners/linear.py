"""Linear layers, in oneDNN's blocked layout on the CPU.

PyTorch's own `F.linear` reorders a weight at every call; packed once, a step of few rows takes half the time
in bfloat16, and two thirds of it in float32. The packed operators are private to PyTorch, so they are looked
for before use.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACK_ROWS = 32  # the number of rows that the layout is chosen for: a full decode step


def packs(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether weights of this dtype on this device can be packed."""
    ops = torch.ops.mkldnn
    return (
        device.type == "cpu"
        and hasattr(ops, "_linear_pointwise")
        and hasattr(ops, "_reorder_linear_weight")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch has no types here
        and (dtype == torch.float32 or (dtype == torch.bfloat16 and bool(ops._is_mkldnn_bf16_supported())))
    )


class Linear:
    """x [..., in] -> x @ weight.T + bias [..., out]. Holds the packed weight only."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self.packed = packs(weight.dtype, weight.device)
        if self.packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), PACK_ROWS)
        self.weight = weight
        self.bias = bias

    def dense(self) -> Tensor:
        """The weight [out, in] in PyTorch's own layout; a copy if it is packed."""
        return self.weight.to_dense() if self.packed else self.weight

    def __call__(self, x: Tensor) -> Tensor:
        if not self.packed:
            return F.linear(x, self.weight, self.bias)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


class LinearModule(nn.Module):
    """A `Linear` in the place of an `nn.Linear`; its `weight` still tells a dtype and a device."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        bias = None if linear.bias is None else linear.bias.detach()
        self._linear = Linear(linear.weight.detach(), bias)
        self.bias = bias

    @property
    def weight(self) -> Tensor:
        return self._linear.weight

    def dense(self) -> Tensor:
        return self._linear.dense()

    def forward(self, x: Tensor) -> Tensor:
        return self._linear(x)


def pack_linears(model: nn.Module) -> int:
    """Replace every `nn.Linear` that can be packed, one by one, so that memory grows by one layer at most.

    Returns how many were replaced. Only for inference: packed weights have no gradient and no state dict.
    """
    count = 0
    for module in list(model.modules()):
        for name, child in module.named_children():
            # Subclasses (quantised, LoRA) compute something else.
            if type(child) is nn.Linear and packs(child.weight.dtype, child.weight.device):
                setattr(module, name, LinearModule(child))
                count += 1
    return count
