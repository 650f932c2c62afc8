"""Each method through TRL's trainer: that what is loaded is what it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from stack.engine.text.open import load_tokenizer
from stack.schemas.post_training import QATFinetuningConfig
from stack.training.arguments import optimizer, training_arguments
from stack.training.model import load
from tests.training.plans import ALONE, lora, make_plan

METHODS = {
    "full": None,
    "output": lora(lora_attn_modules=[], apply_lora_to_output=True),  # the head alone: it has to learn
    "dora": lora(use_dora=True, apply_lora_to_mlp=True),
    "int8": lora(quantize_base=True, apply_lora_to_mlp=True),
    "qat": QATFinetuningConfig(quantizer_name="int8_dynamic_act_int4_weight", group_size=32),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_falls(
    name: str, checkpointing: bool, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "1")  # TRL tells its makers of each trainer otherwise
    efficiency = {"enable_activation_checkpointing": checkpointing}
    plan = make_plan(METHODS[name], epochs=8, efficiency=efficiency)
    model = load(plan, tiny_dir, None, torch.device("cpu"))
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    ids = [list(range(start, start + 24)) for start in range(3, 11)]
    arguments: dict[str, Any] = training_arguments(plan, tmp_path) | ALONE
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(max_length=plan.max_tokens, **arguments),
        train_dataset=Dataset.from_list([{"input_ids": each, "labels": each} for each in ids]),
        processing_class=load_tokenizer(tiny_dir),
        optimizer_cls_and_kwargs=optimizer(plan),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.95 * losses[0]
    assert before
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
