"""Searches over trials that compute nothing: their loss after n steps is lr / n. Ray Tune is real.

With Ray Train, and in a process of its own, which can be killed:
`python -m tests.training.searching ADDRESS HOME PLAN`.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray import tune

import stack.training.fit
import stack.training.search
from stack.errors import StackError
from stack.settings import Settings
from stack.store.jobs import Job, Lease, LeaseLost
from stack.training.fit import Outcome
from stack.training.plan import Plan
from stack.training.run import FINAL, Run
from stack.training.search import Found

STEPS_PER_EPOCH = 2
FAILS, LOST, DIES_ONCE, WAITS_ONCE = 0.5, 0.25, 0.125, 0.0625
"""Values of lr with which this befalls a trial before its third step."""

Fit = Callable[..., Outcome]


def run_search(home: Path, plan: Plan, fit: Fit) -> Found:
    never: Any = (None, None, None)
    job = Job(plan.job_uuid, "sft", {}, "in_progress", 1, 0, "test", None, False, {}, None, None, *never)
    stack.training.search.fit = fit
    return stack.training.search.search(plan, Lease(job, "test"), Settings(home=home))


def steps(home: Path, trial: int) -> list[int]:
    """Those that this trial took, in order."""
    file = home / f"trial-{trial}"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def without_train(plan: Plan, lease: Lease, name: str, settings: Settings, **options: Any) -> Outcome:
    """A run in the trial's own process."""
    metrics: dict[str, float] = {}
    for step in range(1, plan.training.n_epochs * STEPS_PER_EPOCH + 1):
        metrics = _step(settings.home, plan, lease, name, step)
        tune.report(metrics)
    model = f"{plan.run_folder}/{name}/{FINAL}/model"
    (settings.home / "storage" / model).mkdir(parents=True)
    (settings.home / "storage" / model / "weights").touch()
    return Outcome(name, model, metrics)


def on_train(plan: Plan, lease: Lease, name: str, settings: Settings, **options: Any) -> Outcome:
    """A run on Ray Train, as it is but for what its workers do."""
    stack.training.fit._loop = partial(_loop, settings.home)
    return stack.training.fit.fit(plan, lease, name, settings, **options)


def _loop(home: Path, run: Run) -> None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None and Path(checkpoint.path).name == FINAL:
        return
    done = 0 if checkpoint is None else int((Path(checkpoint.path) / "model" / "step").read_text())
    metrics: dict[str, float] = {}
    for step in range(done + 1, run.plan.training.n_epochs * STEPS_PER_EPOCH + 1):
        metrics = _step(home, run.plan, run.lease, run.name, step)
        _save(metrics, f"checkpoint-{step}")
    _save(metrics, FINAL)


def _step(home: Path, plan: Plan, lease: Lease, name: str, step: int) -> dict[str, float]:
    lr = plan.training.optimizer_config.lr
    if step == 3:
        _befall(lr, home, lease)
    with (home / name).open("a") as file:
        file.write(f"{step}\n")
    return {"step": step, "epoch": step / STEPS_PER_EPOCH, "validation_loss": lr / step}


def _befall(lr: float, home: Path, lease: Lease) -> None:
    if lr == FAILS:
        raise StackError("cannot be trained")
    if lr == LOST:
        raise LeaseLost(lease.job_id)
    if lr == DIES_ONCE and not (home / "died").exists():
        (home / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if lr == WAITS_ONCE and not (home / "waited").exists():
        (home / "waited").touch()
        signal.pause()


def _save(metrics: dict[str, float], name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model").mkdir()
        (Path(folder) / "model" / "step").write_text(str(metrics["step"]))
        ray.train.report(metrics, ray.train.Checkpoint.from_directory(folder), checkpoint_dir_name=name)


if __name__ == "__main__":
    ray.init(address=sys.argv[1], log_to_driver=False)
    run_search(Path(sys.argv[2]), Plan.model_validate_json(Path(sys.argv[3]).read_text()), on_train)
