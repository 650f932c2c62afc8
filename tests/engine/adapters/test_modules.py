"""Adapters over transformers' own modules, in both runners that use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stack.engine.adapters.modules import linear_modules
from stack.engine.adapters.weights import read_adapter
from stack.engine.base import Segment
from stack.engine.runners.sequences import SequenceRunner
from stack.engine.runners.slots import SlotRunner
from stack.errors import BadRequest
from tests.engine.adapters.peft_models import add, check_mixed, save_adapter
from tests.engine.tiny import ATTENTION_ONLY, BASE, GPT2, VOCABULARY, tiny_model

GPT2_TIED = GPT2 | {"tie_word_embeddings": True}
MAMBA: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip


def adapters_of(model: Any, root: Path, attention: list[str], **more: Any) -> dict[str | None, Path | None]:
    """Several of different ranks and targets, one with DoRA, one of the head."""
    kinds: dict[str, dict[str, Any]] = {
        "attention": {"r": 3, "target_modules": attention},
        "more": {"r": 5, "target_modules": [*attention, "lm_head"], "use_rslora": True},
        "dora": {"r": 2, "target_modules": attention, "use_dora": True},
        "head": {"r": 2, "target_modules": ["lm_head", *attention[:1]]},
    }
    return {None: None} | {
        name: save_adapter(model, root / name, seed, **config, **more)
        for seed, (name, config) in enumerate(kinds.items())
    }


@pytest.mark.parametrize(
    ("model_type", "settings", "attention"),
    [
        ("gpt2", GPT2_TIED, ["c_attn", "c_proj"]),
        ("gemma2", ATTENTION_ONLY["gemma2"], ["q_proj", "v_proj", "o_proj"]),
        ("phi", BASE, ["q_proj", "dense", "fc1"]),
        ("mixtral", ATTENTION_ONLY["mixtral"], ["q_proj", "k_proj"]),
    ],
)
def test_slots(tmp_path: Path, model_type: str, settings: dict[str, Any], attention: list[str]) -> None:
    model = tiny_model(model_type, settings)
    more = {"fan_in_fan_out": True} if model_type == "gpt2" else {}
    folders = adapters_of(model, tmp_path, attention, **more)
    own = tiny_model(model_type, settings)  # the runner changes its model's attention
    check_mixed(SlotRunner(own, slots=6, context_length=128), model, folders, 2e-5, VOCABULARY)


@pytest.mark.parametrize(
    ("model_type", "settings", "attention"),
    [("gpt2", GPT2, ["c_attn"]), ("mamba", MAMBA, ["in_proj", "x_proj"])],
)
def test_sequences(tmp_path: Path, model_type: str, settings: dict[str, Any], attention: list[str]) -> None:
    model = tiny_model(model_type, settings)
    folders = adapters_of(model, tmp_path, attention)
    own = tiny_model(model_type, settings)
    check_mixed(
        SequenceRunner(own, slots=6, context_length=128), model, folders, 2e-5, VOCABULARY, in_parts=False
    )


def test_only_what_an_adapter_changes_is_hooked(tmp_path: Path) -> None:
    model = tiny_model("phi", BASE)
    runner = SlotRunner(model, slots=2, context_length=64)

    def hooks() -> list[str]:
        return [name for name, module in linear_modules(model).items() if module._forward_hooks]

    assert hooks() == []
    other = tiny_model("phi", BASE)
    folder = save_adapter(other, tmp_path, 0, r=2, target_modules=["fc1"], layers_to_transform=[1])
    before = runner.forward([Segment(0, 0, [3, 4, 5])])
    add(runner, "a", folder)
    assert hooks() == ["model.layers.1.mlp.fc1"]
    assert torch.equal(runner.forward([Segment(0, 0, [3, 4, 5])]), before)
    assert not torch.allclose(runner.forward([Segment(0, 0, [3, 4, 5], adapter="a")]), before, atol=1e-2)
    assert runner.adapters is not None
    runner.adapters.remove("a")
    assert hooks() == []


def test_what_sees_other_rows_is_refused(tmp_path: Path) -> None:
    """Experts compute some of the rows, in a way that no hook sees."""
    runner = SlotRunner(tiny_model("mixtral", ATTENTION_ONLY["mixtral"]), slots=2, context_length=64)
    folder = save_adapter(tiny_model("phi", BASE), tmp_path, 0, r=2, target_modules=["fc1"])
    assert runner.adapters is not None
    with pytest.raises(BadRequest, match="no linear layer of its base model"):
        runner.adapters.prepare(read_adapter(folder))
