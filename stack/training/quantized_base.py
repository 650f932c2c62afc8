"""A frozen base model whose linear layers hold int8 weights, for an adapter to be trained on it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from stack.errors import BadRequest


class Saved(NamedTuple):
    """Bytes of all weights."""

    before: int
    after: int

    def __str__(self) -> str:
        return f"{self.before / 1e6:.0f} MB of weights are {self.after / 1e6:.0f} MB"


def quantize_base(model: Any) -> Saved:
    """Round the linear layers' weights to int8, with a scale for each output; the head stays as it is.

    Raises BadRequest for a model without such layers.
    """
    before = _bytes(model)
    head = model.get_output_embeddings()
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    ]
    if not found:
        raise BadRequest(
            "algorithm_config.quantize_base: the model has no linear layers that can be quantised"
        )
    for path, module in found:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, Int8Linear(module))
    return Saved(before, _bytes(model))


def leave_to_each_worker(model: nn.Module) -> None:
    """Let DDP pass over the int8 weights, which it cannot send: all workers rounded the same."""
    names = [name for name, parameter in model.named_parameters() if hasattr(parameter, "qdata")]
    ignore: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(model, names)


class Int8Linear(nn.Linear):
    """A linear layer over torchao's int8 weights, frozen.

    torchao's own product leaves each layer's weights in floating point to the backward pass, so that nothing
    would be saved while training; here int8 is left, and converted once more.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        linear.requires_grad_(False)
        quantize_(linear, Int8WeightOnlyConfig(set_inductor_config=False))
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, input: Tensor) -> Tensor:
        weight: Any = self.weight
        out: Tensor = _product(input, weight.qdata, weight.scale.flatten())
        return out if self.bias is None else out + self.bias


class _Int8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, integers: Tensor, scale: Tensor) -> Tensor:
        """[..., inputs] times [outputs, inputs], scaled by [outputs]."""
        ctx.save_for_backward(integers, scale)
        product = F.linear(input, integers.to(input.dtype))
        return product * scale.to(product.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        integers, scale = ctx.saved_tensors
        return (grad * scale.to(grad.dtype)) @ integers.to(grad.dtype), None, None


_product: Any = _Int8Product.apply


def _bytes(model: nn.Module) -> int:
    """Of all weights; torchao's keep theirs in inner tensors."""
    return sum(_size(parameter) for parameter in model.parameters())


def _size(parameter: Any) -> int:
    if hasattr(parameter, "qdata"):
        return int(parameter.qdata.nbytes + parameter.scale.nbytes)
    return int(parameter.nbytes)
