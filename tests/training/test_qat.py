"""Weights on the int4 grid: what torchao holds, and what it makes of them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerGroup, quantize_
from torchao.quantization.qat import FakeQuantizedLinear
from torchao.quantization.quant_primitives import MappingType
from torchao.quantization.utils import groupwise_affine_quantize_tensor
from transformers import AutoModelForCausalLM

from stack.errors import BadRequest
from stack.schemas.post_training import QATFinetuningConfig
from stack.training.checks import QUANTIZERS as CHECKED
from stack.training.model import load, save
from stack.training.qat import QUANTIZERS, prepare, rounded
from tests.training.plans import make_plan

CPU = torch.device("cpu")
GROUP = 32
NAMES = ["int8_dynamic_act_int4_weight", "int4_weight_only"]
IDS = torch.arange(3, 43).reshape(2, 20)


def qat(name: str) -> QATFinetuningConfig:
    return QATFinetuningConfig(quantizer_name=name, group_size=GROUP)


def trained(name: str, folder: Path) -> Any:
    model = load(make_plan(qat(name)), folder, None, CPU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    return model


def layers(model: Any) -> list[str]:
    return [f"{path}.weight" for path, m in model.named_modules() if isinstance(m, FakeQuantizedLinear)]


def converted(weight: Tensor) -> Any:
    """By torchao, to the int4 weights of the 8da4w scheme."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.clone())
    config = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4,
        weight_granularity=PerGroup(GROUP),
        weight_mapping_type=MappingType.SYMMETRIC_NO_CLIPPING_ERR,
    )
    quantize_(model := nn.Sequential(linear), config)
    return model[0].weight


def test_submissions_know_the_same_quantizers() -> None:
    assert set(CHECKED) == set(QUANTIZERS)


@pytest.mark.parametrize("name", NAMES)
def test_every_linear_layer_but_the_head_is_prepared(name: str, tiny_dir: Path) -> None:
    model = load(make_plan(qat(name)), tiny_dir, None, CPU)
    assert len(layers(model)) == 2 * 7
    assert type(model.lm_head) is nn.Linear


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_computes_as_the_model_in_training_did(
    name: str, tiny_dir: Path, tmp_path: Path
) -> None:
    model = trained(name, tiny_dir)
    save(make_plan(qat(name)), model, tmp_path)
    model.eval()
    for module in model.modules():
        if isinstance(module, FakeQuantizedLinear):
            module.activation_fake_quantizer = None  # which the saved model leaves to who serves it
    served = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(served(IDS).logits, model(IDS).logits, atol=1e-4, rtol=0)
    recipe = json.loads((tmp_path / "qat.json").read_text())
    assert (recipe["quantizer_name"], recipe["group_size"]) == (name, GROUP)


@pytest.mark.parametrize("name", NAMES)
def test_no_group_has_more_than_16_values_and_rounding_again_changes_none(
    name: str, tiny_dir: Path, tmp_path: Path
) -> None:
    model = trained(name, tiny_dir)
    save(make_plan(qat(name)), model, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    again = load(make_plan(qat(name)), tmp_path, None, CPU)
    twice = rounded(again, again.state_dict())
    for path in layers(model):
        assert torch.equal(twice[path], saved[path])
        assert not torch.equal(saved[path], model.get_parameter(path))
        groups = saved[path].reshape(-1, GROUP)
        assert max(len(group.unique()) for group in groups) <= 16


def test_torchao_makes_the_same_int4_of_what_is_saved(tiny_dir: Path, tmp_path: Path) -> None:
    model = trained(NAMES[0], tiny_dir)
    save(make_plan(qat(NAMES[0])), model, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    for path in layers(model):
        from_training, from_saved = converted(model.get_parameter(path).detach()), converted(saved[path])
        assert torch.equal(from_saved.qdata, from_training.qdata)
        assert torch.equal(from_saved.dequantize(), saved[path])
        torch.testing.assert_close(from_saved.scale, from_training.scale, rtol=1e-6, atol=0)


def test_tinygemm_makes_the_same_int4_of_what_is_saved(tiny_dir: Path, tmp_path: Path) -> None:
    model = trained(NAMES[1], tiny_dir)
    save(make_plan(qat(NAMES[1])), model, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    for path in layers(model):
        before, scales_before = groupwise_affine_quantize_tensor(model.get_parameter(path).detach(), 4, GROUP)
        after, scales_after = groupwise_affine_quantize_tensor(saved[path], 4, GROUP)
        assert torch.equal(before, after)
        assert torch.equal(scales_before, scales_after)


def test_gradients_pass_straight_through(tiny_dir: Path) -> None:
    linear = nn.Linear(64, 2, bias=False)
    QUANTIZERS[NAMES[0]](linear, GROUP).weight_fake_quantizer(linear.weight).sum().backward()
    assert torch.equal(linear.weight.grad, torch.ones(2, 64))


def test_groups_that_do_not_fit_are_refused(tiny_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_dir)
    with pytest.raises(BadRequest, match="takes 64 inputs, which groups of 48 do not divide"):
        prepare(model, NAMES[0], 48)
    assert layers(model) == []
