"""Rows of several adapters and of the base in one pass, beside PEFT's model one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from stack.engine.adapters.weights import read_adapter
from stack.engine.base import Segment
from stack.engine.runners.llama import LlamaRunner
from stack.engine.runners.llama_eager import EagerLlama
from stack.errors import BadRequest
from tests.engine.adapters.peft_models import add, check_mixed, peft_logits, save_adapter
from tests.engine.tiny import BASE, VOCABULARY, tiny_model

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION},
    "some of qkv": {"r": 2, "lora_alpha": 4, "target_modules": ["v_proj", "up_proj"], "use_rslora": True},
    "all": {"r": 8, "lora_alpha": 8, "target_modules": "all-linear"},
    "head": {"r": 3, "lora_alpha": 6, "target_modules": ["lm_head", "q_proj"]},
    "patterns": {
        "r": 4, "lora_alpha": 4, "target_modules": [*ATTENTION, *MLP],
        "rank_pattern": {"q_proj": 7}, "alpha_pattern": {"layers.1.mlp.down_proj": 16},
        "layers_to_transform": [1, 2],
    },
    "dora": {"r": 4, "lora_alpha": 8, "target_modules": [*ATTENTION, "up_proj"], "use_dora": True},
    "dora head": {"r": 2, "lora_alpha": 8, "target_modules": ["lm_head"], "use_dora": True},
}  # fmt: skip
FAMILIES = {
    "llama": BASE | {"tie_word_embeddings": True},
    "qwen2": BASE,  # its q, k and v have biases
}


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model(request.param, FAMILIES[request.param]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def folders(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, Path | None]:
    """Of all adapters, by name; None stands for the base."""
    root = tmp_path_factory.mktemp("adapters")
    made: dict[str | None, Path | None] = {None: None}
    for seed, (name, config) in enumerate(ADAPTERS.items()):
        made[name] = save_adapter(model, root / name, seed, **config)
    return made


def open_runner(base: Path, slots: int = 9) -> LlamaRunner:
    return LlamaRunner.open(base, torch.float32, context_length=128, slots=slots)


def test_mixed_rows_equal_peft(base: Path, model: Any, folders: dict[str | None, Path | None]) -> None:
    runner = open_runner(base)
    assert isinstance(runner.model, EagerLlama)
    check_mixed(runner, model, folders, 1e-5, VOCABULARY)


def test_adapters_come_and_go(base: Path, model: Any, folders: dict[str | None, Path | None]) -> None:
    """What is freed is used again, and what stays is not disturbed."""
    runner = open_runner(base)
    bank = runner.model.adapters
    prompt = [5, 9, 33, 7, 21, 40]
    expected = {name: peft_logits(model, folder, prompt)[-1] for name, folder in folders.items()}

    def check(*present: str | None) -> None:
        segments = [Segment(slot, 0, prompt, adapter=name) for slot, name in enumerate(present)]
        for name, row in zip(present, runner.forward(segments), strict=True):
            torch.testing.assert_close(row, expected[name], atol=1e-4, rtol=1e-4)

    def put(name: str) -> None:
        folder = folders[name]
        assert folder is not None
        add(runner, name, folder)

    put("dora"), put("all"), put("head")
    check("dora", None, "all", "head")
    bank.remove("dora")
    check(None, "head", "all")
    put("patterns")
    bank.remove("patterns")
    check("all", None, "head", None)  # what it left must not reach the rows of the base
    put("patterns")
    put("dora head")
    check("all", "patterns", "dora head", "head", None)
    bank.remove("all")
    bank.remove("all")  # once more does no harm
    bank.remove("head")
    put("attention")
    check("attention", "dora head", "patterns")
    for name in ("patterns", "dora head", "attention"):
        bank.remove(name)
    check(None)
    assert all(site.a is None and site.b is None and site.scale is None for site in bank.sites)


def test_what_does_not_fit_is_refused(base: Path, tmp_path: Path) -> None:
    adapters = open_runner(base).adapters
    wider = tiny_model("llama", BASE | {"hidden_size": 48})
    folder = save_adapter(wider, tmp_path / "wider", 0, r=2, target_modules=["q_proj"])
    with pytest.raises(BadRequest, match=r"q_proj it takes 48 .* its base model 32"):
        adapters.prepare(read_adapter(folder))
    other = tiny_model("gpt_neox", BASE)
    folder = save_adapter(other, tmp_path / "other", 0, r=2, target_modules=["dense"])
    with pytest.raises(BadRequest, match="no linear layer of its base model"):
        adapters.prepare(read_adapter(folder))
