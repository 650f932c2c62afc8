"""The DPO loss by hand, and the trainer on a tiny model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import tensor
from transformers import AutoModelForCausalLM, TrainingArguments

from stack.engine.text.open import load_tokenizer
from stack.schemas.post_training import DPOAlignmentConfig
from stack.training.arguments import optimizer, training_arguments
from stack.training.model import load, save
from stack.training.plan import Plan
from stack.training.preference import Preferences, PreferenceTrainer, dpo_loss, reference_logps
from tests.training.plans import ALIGNMENT, ALONE, lora, make_plan

CPU = torch.device("cpu")


def config(**values: float) -> DPOAlignmentConfig:
    defaults = {"reward_scale": 0.5, "reward_clip": 0.0, "epsilon": 0.0, "gamma": 0.0}
    return DPOAlignmentConfig(**(defaults | values))


def loss(**values: float) -> Preferences:
    """Of one pair: the policy raises the chosen answer by 2 nats and lowers the rejected by 4."""
    return dpo_loss(tensor([-10.0]), tensor([-24.0]), tensor([-12.0]), tensor([-20.0]), config(**values))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_the_loss_is_that_of_the_paper() -> None:
    found = loss()
    assert found.chosen.item() == 0.5 * 2  # reward_scale * (-10 - -12)
    assert found.rejected.item() == 0.5 * -4
    assert found.loss.item() == pytest.approx(softplus(-3.0))  # -log sigmoid(1 - -2)


def test_rewards_are_clipped_on_both_sides() -> None:
    found = loss(reward_clip=0.75)
    assert (found.chosen.item(), found.rejected.item()) == (0.75, -0.75)
    assert found.loss.item() == pytest.approx(softplus(-1.5))


def test_a_reward_beyond_the_clip_has_no_gradient() -> None:
    chosen = tensor([-10.0], requires_grad=True)
    rejected = tensor([-20.5], requires_grad=True)
    dpo_loss(
        chosen, rejected, tensor([-12.0]), tensor([-20.0]), config(reward_clip=0.75)
    ).loss.sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() == 0.0  # its reward, 1, is beyond
    # d softplus(-h) = -sigmoid(-h) dh; h = 0.75 - -0.25 = 1, dh / d rejected = -0.5
    assert rejected.grad.item() == pytest.approx(0.5 / (1 + math.e))


def test_gamma_is_the_margin_that_is_wanted() -> None:
    assert loss(gamma=1.0).loss.item() == pytest.approx(softplus(-2.0))


def test_epsilon_is_the_share_of_labels_that_are_wrong() -> None:
    expected = 0.9 * softplus(-3.0) + 0.1 * softplus(3.0)
    assert loss(epsilon=0.1).loss.item() == pytest.approx(expected)


def test_all_parameters_together() -> None:
    h = 0.75 - -0.75 - 0.5
    expected = 0.8 * softplus(-h) + 0.2 * softplus(h)
    assert loss(reward_clip=0.75, gamma=0.5, epsilon=0.2).loss.item() == pytest.approx(expected)


PAIRS = [
    {
        "prompt_ids": [5, 10 + i],
        "chosen_ids": [40 + i, 41, 2][: 2 + i % 2],
        "rejected_ids": [60, 61, 70 + i, 2],
    }
    for i in range(5)
]


def with_reference(plan: Plan, model: Any) -> Dataset:
    rows = Dataset.from_list(PAIRS)
    chosen, rejected = reference_logps(plan, model, rows, lambda done: None)
    return rows.add_column("ref_chosen_logps", chosen).add_column("ref_rejected_logps", rejected)


def make_trainer(plan: Plan, model: Any, folder: Path, output: Path) -> PreferenceTrainer:
    rows = with_reference(plan, model)
    return PreferenceTrainer(
        plan=plan,
        model=model,
        args=TrainingArguments(**training_arguments(plan, output) | ALONE),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=load_tokenizer(folder),
        optimizer_cls_and_kwargs=optimizer(plan),
    )


def logged(trainer: PreferenceTrainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_the_reference_is_the_sum_over_the_answers_tokens(tiny_dir: Path) -> None:
    plan = make_plan(lora(), alignment=ALIGNMENT)
    model = load(plan, tiny_dir, None, CPU)
    progress: list[int] = []
    found = reference_logps(plan, model, Dataset.from_list(PAIRS), progress.append)
    assert progress == [2, 4, 5]
    assert found == reference_logps(plan, model, Dataset.from_list(PAIRS), progress.append)
    plain = AutoModelForCausalLM.from_pretrained(tiny_dir)
    for name, values in zip(("chosen_ids", "rejected_ids"), found, strict=True):
        for row, value in zip(PAIRS, values, strict=True):
            ids = tensor([row["prompt_ids"] + row[name]])
            logps = plain(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
            assert value == pytest.approx(logps[-len(row[name]) :].sum().item(), abs=1e-4)


def test_it_begins_at_log_2_and_comes_to_prefer(tiny_dir: Path, tmp_path: Path) -> None:
    plan = make_plan(lora(apply_lora_to_output=True), alignment=ALIGNMENT, epochs=6)
    trainer = make_trainer(plan, load(plan, tiny_dir, None, CPU), tiny_dir, tmp_path)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
    trainer.train()
    assert logged(trainer, "loss")[0] == pytest.approx(math.log(2), abs=1e-5)
    assert logged(trainer, "rewards/accuracies")[0] == pytest.approx(0.5)  # ties
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.5
    assert logged(trainer, "eval_rewards/accuracies")[-1] == 1.0
    margin = logged(trainer, "eval_rewards/chosen")[-1] - logged(trainer, "eval_rewards/rejected")[-1]
    assert logged(trainer, "eval_rewards/margins")[-1] == pytest.approx(margin)
    assert logged(trainer, "rewards/chosen")
    assert logged(trainer, "logps/rejected")


def test_an_evaluation_counts_each_pair_once(tiny_dir: Path, tmp_path: Path) -> None:
    """5 pairs in batches of 2: the last one, alone in its batch, weighs no more than the others."""
    plan = make_plan(lora(), alignment=ALIGNMENT, epochs=3)
    model = load(plan, tiny_dir, None, CPU)
    trainer = make_trainer(plan, model, tiny_dir, tmp_path)
    before = with_reference(plan, model)
    trainer.train()
    after = with_reference(plan, model)
    columns = (after["ref_chosen_logps"], after["ref_rejected_logps"])
    references = (before["ref_chosen_logps"], before["ref_rejected_logps"])
    expected = dpo_loss(*(tensor(list(c)) for c in (*columns, *references)), ALIGNMENT).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.mean().item(), abs=1e-4)


def test_a_continued_adapter_is_its_own_reference_without_a_copy(tiny_dir: Path, tmp_path: Path) -> None:
    plan = make_plan(lora(), alignment=ALIGNMENT, epochs=3)
    first = load(plan, tiny_dir, None, CPU)
    make_trainer(plan, first, tiny_dir, tmp_path / "a").train()
    save(plan, first, tmp_path / "adapter")
    model = load(plan, tiny_dir, tmp_path / "adapter", CPU)
    trainer = make_trainer(plan, model, tiny_dir, tmp_path / "b")
    assert list(model.peft_config) == ["default"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
