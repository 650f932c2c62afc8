"""Which modules an adapter is put on, in models that are built differently."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from stack.errors import BadRequest
from stack.training.lora import add_adapter, module_paths, target_modules
from tests.training.plans import lora


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=99, n_positions=64)
    return GPT2LMHeadModel(config).eval()


def test_the_names_are_short_where_they_mean_these_modules_alone(tiny_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_dir)
    config = lora(lora_attn_modules=["output_proj"], apply_lora_to_mlp=True, apply_lora_to_output=True)
    assert target_modules(model, config) == ["down_proj", "gate_proj", "lm_head", "o_proj", "up_proj"]
    assert module_paths(model, config)[0] == "model.layers.0.self_attn.o_proj"


def test_gpt2s_attention_and_mlp_have_layers_of_one_name(gpt2: GPT2LMHeadModel) -> None:
    config = lora(lora_attn_modules=["c_attn", "c_proj"])
    assert target_modules(gpt2, config) == ["attn.c_proj", "c_attn"]
    ids = torch.arange(20)[None]
    before = gpt2(ids).logits
    model = add_adapter(gpt2, config, "gpt2").eval()  # Conv1D, whose weights are transposed
    adapted = [path for path, module in gpt2.named_modules() if hasattr(module, "lora_A")]
    assert adapted == [f"transformer.h.{n}.attn.{name}" for n in range(2) for name in ("c_attn", "c_proj")]
    torch.testing.assert_close(model(ids).logits, before)


def test_unknown_modules_are_named_with_the_known(gpt2: GPT2LMHeadModel) -> None:
    with pytest.raises(BadRequest, match=r"no 'q_proj'; it has c_attn, c_proj"):
        module_paths(gpt2, lora(lora_attn_modules=["q_proj"]))


def test_dora_refuses_an_output_without_direction(tiny_dir: Path) -> None:
    """The tiny model's embedding of padding is zero, and its head shares it: 0 / 0 would follow."""
    model = AutoModelForCausalLM.from_pretrained(tiny_dir)
    with pytest.raises(BadRequest, match="use_dora: lm_head has an output without weights"):
        add_adapter(model, lora(use_dora=True, apply_lora_to_output=True), "tiny")
