"""The trainer of a method: TRL's for supervised fine-tuning, `PreferenceTrainer` for DPO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainingArguments
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from stack.engine.text.open import load_tokenizer
from stack.training.arguments import optimizer, training_arguments
from stack.training.data import EpochSampler
from stack.training.plan import Plan
from stack.training.preference import PreferenceTrainer

if TYPE_CHECKING:
    from datasets import Dataset


class _Ordered(Trainer):
    """Rows come in the order of `EpochSampler`; `rows_per_epoch` limits them."""

    plan: Plan

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        config, args = self.plan.training, self.args
        limit = None
        if config.max_steps_per_epoch > 0:
            steps = config.max_steps_per_epoch * args.gradient_accumulation_steps
            limit = steps * args.per_device_train_batch_size * args.world_size
        return EpochSampler(len(rows), shuffle=config.data_config.shuffle, seed=self.plan.seed, limit=limit)


class _Sft(_Ordered, SFTTrainer):
    def _send_telemetry(self, *args: Any, **kwargs: Any) -> None:
        """TRL tells its makers what is trained; this server tells nobody."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Ours is written beside each checkpoint."""


class _Dpo(_Ordered, PreferenceTrainer):
    pass


def make_trainer(
    plan: Plan,
    model: Any,
    tokenizer_folder: Path,
    train: Dataset,
    validation: Dataset | None,
    output: Path,
    resumed: bool,
) -> Trainer:
    """Ready to train. Rows are those of `stack.training.prepare`, for DPO with the reference's columns."""
    arguments = training_arguments(plan, output)
    arguments["eval_on_start"] = validation is not None and not resumed
    tokenizer = load_tokenizer(tokenizer_folder)
    if validation is not None:
        validation = _first_batches(plan, validation)
    given: dict[str, Any] = {
        "model": model,
        "train_dataset": train,
        "eval_dataset": validation,
        "processing_class": tokenizer,
        "optimizer_cls_and_kwargs": optimizer(plan),
    }
    trainer: Trainer
    if plan.method == "sft":
        config = plan.training.data_config
        sft = SFTConfig(packing=config.packed, eval_packing=False, max_length=plan.max_tokens, **arguments)
        _Sft.plan = plan
        trainer = _Sft(args=sft, **given)
    else:
        _Dpo.plan = plan
        trainer = _Dpo(plan=plan, args=TrainingArguments(**arguments), **given)
    return trainer


def _first_batches(plan: Plan, validation: Dataset) -> Dataset:
    """As many as `max_validation_steps` allows."""
    steps = plan.training.max_validation_steps
    rows = steps * plan.training.data_config.batch_size * plan.resources.workers
    return validation.select(range(min(rows, len(validation)))) if steps > 0 else validation
