"""When a run is evaluated and saved, and what becomes of it: transformers' callbacks."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
import torch
import torch.distributed as distributed
from ray.train.torch import get_device
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stack.training.card import model_card
from stack.training.run import Checkpoint

if TYPE_CHECKING:
    from stack.training.plan import Plan
    from stack.training.report import Report
    from stack.training.run import Run

CURVE_POINTS = 100  # of the loss, in a job's progress

SOON_S = 10.0
"""Epochs that end so soon after the last checkpoint have none of their own, but for the last one."""


class Progress(TrainerCallback):
    """Shows the step, the loss and the speed."""

    def __init__(self, report: Report | None) -> None:
        self._report = report
        self._began = self._before = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._began, self._before = time.perf_counter(), float(state.num_input_tokens_seen)
        self._show(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._show(state)

    def _show(self, state: TrainerState) -> None:
        if self._report is None:
            return
        values: dict[str, Any] = {"done": state.global_step, "total": state.max_steps, "unit": "steps"}
        if state.epoch is not None:
            values["epoch"] = round(state.epoch, 3)
        if (loss := latest(state, "loss")) is not None and math.isfinite(loss):
            values["loss"] = loss
        seconds, tokens = time.perf_counter() - self._began, state.num_input_tokens_seen - self._before
        if seconds > 1 and tokens:
            values["tokens_per_s"] = round(tokens / seconds, 1)
        losses = {"train": "loss", "validation": "eval_loss"}
        values["curve"] = {name: points(state.log_history, key) for name, key in losses.items()}
        self._report.progress(**values)


class Milestones(TrainerCallback):
    """Decides when to evaluate and to save: after epochs, every `checkpoint_s` seconds, and at the end."""

    def __init__(self, plan: Plan, evaluations_per_epoch: int, *, has_validation: bool) -> None:
        self._plan, self._per_epoch, self._validates = plan, evaluations_per_epoch, has_validation
        self._saved = time.monotonic()
        self._pending = False
        self.metrics: dict[str, float] = {}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        epochs = math.ceil(args.num_train_epochs)
        epoch_steps = max(1, state.max_steps // epochs)
        ends_epoch = state.global_step % epoch_steps == 0
        last = state.global_step >= state.max_steps
        age_s = self._age_s()
        save = last or age_s > self._plan.checkpoint_s or (ends_epoch and age_s > SOON_S)
        every = max(1, epoch_steps // self._per_epoch)
        evaluate = save if self._per_epoch == 1 else save or state.global_step % every == 0
        if save:
            self._saved = time.monotonic()
        control.should_save = save
        control.should_log = control.should_log or evaluate
        control.should_evaluate = evaluate and self._validates
        self._pending = evaluate and not self._validates

    def _age_s(self) -> float:
        """Since the last checkpoint, by the first worker's clock: all workers decide the same."""
        age_s = time.monotonic() - self._saved
        if not (distributed.is_initialized() and distributed.get_world_size() > 1):
            return age_s
        shared = torch.tensor([age_s], device=get_device())
        distributed.broadcast(shared, 0)
        return float(shared.item())

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.metrics = metrics_of(state)
        if not control.should_save:  # else the checkpoint's report has them
            ray.train.report(self.metrics)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Where nothing is evaluated, the training loss is what is known."""
        if self._pending and not control.should_save:
            self.metrics = metrics_of(state)
            ray.train.report(self.metrics)
        self._pending = False


class Checkpoints(TrainerCallback):
    """Hands each checkpoint to Ray Train, which stores it, and notes it in the job's row."""

    def __init__(self, run: Run, report: Report | None, milestones: Milestones) -> None:
        self._run, self._report, self._milestones = run, report, milestones

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        assert args.output_dir is not None
        name = f"checkpoint-{state.global_step}"
        folder = Path(args.output_dir) / name
        folder.mkdir(parents=True, exist_ok=True)
        self._milestones.metrics = metrics_of(state)
        if state.is_world_process_zero:
            (folder / "README.md").write_text(
                model_card(self._run.plan, state, self._milestones.metrics, model.device)
            )
        ray.train.report(
            self._milestones.metrics,
            ray.train.Checkpoint.from_directory(str(folder)),
            checkpoint_dir_name=name,
            delete_local_checkpoint_after_upload=True,
        )
        if self._report is not None:
            checkpoint = Checkpoint.of(
                self._run.plan, self._run.name, state.global_step, self._milestones.metrics
            )
            self._report.checkpoint(self._run.item + state.global_step, checkpoint.shown())


def points(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """At most `CURVE_POINTS` of a value's steps and values, the newest one among them."""
    found = [
        (entry["step"], round(entry[key], 5)) for entry in history if math.isfinite(entry.get(key, math.nan))
    ]
    every = -(-len(found) // CURVE_POINTS) or 1
    return found[::-every][::-1]


def latest(state: TrainerState, key: str) -> float | None:
    """The newest value that was logged."""
    return next((entry[key] for entry in reversed(state.log_history) if key in entry), None)


def metrics_of(state: TrainerState) -> dict[str, float]:
    """The newest metrics, as the API names them; of a run that diverged those that are finite.

    Losses are means over tokens or (DPO) pairs, in nats.
    """
    metrics: dict[str, float] = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4)}
    for name, key in (("train_loss", "loss"), ("validation_loss", "eval_loss")):
        if (value := latest(state, key)) is not None:
            metrics[name] = value
    for prefix in ("", "eval_"):
        for key in (
            "rewards/chosen",
            "rewards/rejected",
            "rewards/margins",
            "rewards/accuracies",
            "chosen_loss",
        ):
            if (value := latest(state, prefix + key)) is not None:
                metrics[("validation_" if prefix else "") + key] = value
    if (start := next((entry for entry in state.log_history if "eval_loss" in entry), None)) is not None:
        metrics["initial_validation_loss"] = start["eval_loss"]
    if "validation_loss" in metrics and "rewards/margins" not in metrics:
        metrics["perplexity"] = math.exp(min(metrics["validation_loss"], 700.0))
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
