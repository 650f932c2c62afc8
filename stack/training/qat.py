"""Quantisation-aware training: linear layers compute with weights as int4 would hold them (torchao).

The output head and the embeddings stay as they are. `rounded` gives the weights that the quantised model
holds, as ordinary numbers: any engine serves them, and quantising them again gives the same integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization.granularity import PerToken
from torchao.quantization.qat import FakeQuantizedLinear, FakeQuantizerBase, IntxFakeQuantizeConfig
from torchao.quantization.quant_primitives import MappingType, ZeroPointDomain
from torchao.quantization.utils import get_group_qparams_symmetric

from stack.errors import BadRequest
from stack.schemas.post_training import QATFinetuningConfig

_ROUNDS = 16


class _SymmetricInt4(nn.Module):
    """int4 weights whose scale puts the extreme of each group on -8 or 7, with straight-through gradients.

    torchao's own has the extreme at 7.5, where quantising once more gives other numbers each time. What
    converts to the same: torchao's Int8DynamicActivationIntxWeightConfig with SYMMETRIC_NO_CLIPPING_ERR.
    """

    def __init__(self, group_size: int) -> None:
        super().__init__()
        self.group_size = group_size

    def forward(self, weight: Tensor) -> Tensor:
        scale, _ = get_group_qparams_symmetric(
            weight.detach(), 4, self.group_size, mapping_type=MappingType.SYMMETRIC_NO_CLIPPING_ERR
        )
        scale = scale.repeat_interleave(self.group_size, dim=1)
        integers = torch.round(weight.detach() * (1.0 / scale)).clamp(-8, 7)
        on_grid: Tensor = integers * scale
        return on_grid + (weight - weight.detach())


def _int8_dynamic_act_int4_weight(linear: nn.Linear, group_size: int) -> nn.Module:
    activations = IntxFakeQuantizeConfig(torch.int8, PerToken(), MappingType.ASYMMETRIC)
    made: nn.Module = FakeQuantizedLinear.from_linear(linear, activations, None)
    made.weight_fake_quantizer = _SymmetricInt4(group_size)
    return made


def _int4_weight_only(linear: nn.Linear, group_size: int) -> nn.Module:
    """As the tinygemm kernel has it: 16 steps from a group's least to its greatest, bfloat16 scales."""
    weights = IntxFakeQuantizeConfig(
        torch.uint4,  # type: ignore[attr-defined]  # lacks in PyTorch's stubs
        group_size=group_size,
        is_symmetric=False,
        scale_precision=torch.bfloat16,
        zero_point_precision=torch.bfloat16,
        zero_point_domain=ZeroPointDomain.FLOAT,
    )
    made: nn.Module = FakeQuantizedLinear.from_linear(linear, None, weights)
    return made


QUANTIZERS: dict[str, Callable[[nn.Linear, int], nn.Module]] = {
    "int8_dynamic_act_int4_weight": _int8_dynamic_act_int4_weight,
    "Int8DynActInt4WeightQATQuantizer": _int8_dynamic_act_int4_weight,
    "int4_weight_only": _int4_weight_only,
    "Int4WeightOnlyQATQuantizer": _int4_weight_only,
}
"""By the names that requests use; the others are torchtune's."""


def prepare(model: Any, quantizer: str, group_size: int) -> None:
    """Replace the linear layers within the model. Raises BadRequest for groups that do not fit."""
    linears = list(_linears(model))
    if not linears:
        raise BadRequest("algorithm_config: the model has no linear layers that can be quantised")
    for path, linear in linears:
        if linear.in_features % group_size:
            raise BadRequest(
                f"algorithm_config.group_size: {path} takes {linear.in_features} inputs, which groups of "
                f"{group_size} do not divide; take e.g. 32 or 64"
            )
    for path, linear in linears:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, QUANTIZERS[quantizer](linear, group_size))


def _linears(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    head = model.get_output_embeddings()
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield path, module


@torch.no_grad()
def rounded(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's state, with each prepared layer's weight on its grid."""
    found = dict(state)
    for path, module in model.named_modules():
        if isinstance(module, FakeQuantizedLinear):
            name = f"{path}.weight"
            found[name] = _settled(module.weight_fake_quantizer, found[name])
    return found


def _settled(quantize: FakeQuantizerBase, weight: Tensor) -> Tensor:
    """On a grid that stays when it is made anew: at first a scale's last bit may change."""
    for _ in range(_ROUNDS):
        before, weight = weight, quantize(weight)
        if torch.equal(before, weight):
            break
    return weight


def recipe(config: QATFinetuningConfig) -> dict[str, Any]:
    """How torchao quantises the saved weights without loss."""
    if QUANTIZERS[config.quantizer_name] is _int4_weight_only:
        call = f"Int4WeightOnlyConfig(group_size={config.group_size})"
    else:
        call = (
            f"Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, "
            f"weight_granularity=PerGroup({config.group_size}), "
            f"weight_mapping_type=MappingType.SYMMETRIC_NO_CLIPPING_ERR)"
        )
    return config.model_dump(exclude={"type"}) | {
        "layers": "linear layers but the output head",
        "torchao": call,
    }
