"""A base model in int8, under an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from stack.errors import BadRequest
from stack.training.model import load, save
from stack.training.quantized_base import Int8Linear, quantize_base
from tests.training.plans import lora, make_plan

CPU = torch.device("cpu")
IDS = torch.arange(3, 43).reshape(2, 20)


def test_the_weights_are_a_quarter_of_float32(tiny_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32)
    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not model.lm_head]
    weights, outputs = sum(m.weight.numel() for m in linears), sum(m.out_features for m in linears)
    saved = quantize_base(model)
    assert saved.before - saved.after == 4 * weights - (weights + 4 * outputs)


def test_gradients_are_those_of_the_rounded_weights_and_no_float_is_kept() -> None:
    torch.manual_seed(0)
    linear = Int8Linear(nn.Linear(64, 48))
    x = torch.randn(5, 64, requires_grad=True)
    kept: list[Any] = []

    def note(tensor: Any) -> Any:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = linear(x)
    weight = linear.weight.dequantize()
    torch.testing.assert_close(out, x @ weight.T + linear.bias, atol=1e-5, rtol=0)
    upstream = torch.randn(5, 48)
    out.backward(upstream)
    torch.testing.assert_close(x.grad, upstream @ weight, atol=1e-5, rtol=0)
    assert {t.dtype for t in kept if t.numel() >= 64 * 48} == {torch.int8}


@pytest.mark.parametrize("use_dora", [False, True])
def test_an_adapter_learns_on_it(use_dora: bool, tiny_dir: Path, tmp_path: Path) -> None:
    plan = make_plan(lora(quantize_base=True, use_dora=use_dora, apply_lora_to_mlp=True))
    model = load(plan, tiny_dir, None, CPU)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trainable} == {torch.float32}
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    save(plan, model, tmp_path)
    again = load(plan, tiny_dir, tmp_path, CPU)
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, atol=1e-5, rtol=0)


def test_it_is_near_the_base(tiny_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32)
    with torch.no_grad():
        before = model(IDS).logits
        quantize_base(model)
        assert 0 < (model(IDS).logits - before).abs().max() < 0.05 * before.abs().max()


def test_a_model_without_linear_layers_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=99, n_positions=64))
    with pytest.raises(BadRequest, match="no linear layers that can be quantised"):
        quantize_base(model)
