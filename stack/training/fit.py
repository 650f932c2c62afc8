"""One run of a plan on Ray Train, from the job's process (or a trial's)."""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs
import ray.exceptions
import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from stack.errors import NotReady, StackError
from stack.settings import Settings
from stack.store.filesystems import open_filesystem
from stack.store.jobs import Lease
from stack.training.plan import Plan
from stack.training.run import FINAL, Run

log = logging.getLogger(__name__)

ITEMS_PER_RUN = 1 << 32
"""A run's checkpoints are the job's items from `index * ITEMS_PER_RUN` on."""


_KEEPS_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""For training on CPUs. glibc would return the memory of each large tensor to the system and take it again,
page by page, which is a tenth of a step; most of all in threads like the one that Ray Train works in."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run that is complete. `model` is a folder in the storage."""

    name: str
    model: str
    metrics: dict[str, float] = field(default_factory=dict)


def fit(
    plan: Plan,
    lease: Lease,
    name: str,
    settings: Settings,
    *,
    index: int = 0,
    evaluations_per_epoch: int = 1,
    callbacks: list[Any] | None = None,
) -> Outcome:
    """Train until the plan is complete; goes on from the last checkpoint of an earlier call with this name.

    Blocks. Raises what a worker raised; NotReady when workers died or the storage is full, after which the
    job is tried again.
    """
    # Of a node's end nobody has to be told where there is one: that is one process less to start.
    if len(ray.nodes()) == 1:  # type: ignore[no-untyped-call]  # Ray's
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # each report waits for one
    path, filesystem = ray_storage(settings, plan.run_folder)
    resources = plan.resources
    run = Run(plan, lease, name, index * ITEMS_PER_RUN, evaluations_per_epoch)
    trainer = TorchTrainer(
        lambda: _loop(run),
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=_requested(plan),
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # mypy sees that of Ray Train's first version
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=plan.checkpoints_kept + 1),
            failure_config=FailureConfig(max_failures=0),
            callbacks=callbacks,
            worker_runtime_env=None if resources.gpus_per_worker > 0 else {"env_vars": _KEEPS_MEMORY},
        ),
        torch_config=TorchConfig(backend="nccl" if resources.gpus_per_worker > 0 else "gloo"),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _told(error) from error
    metrics = {key: value for key, value in (result.metrics or {}).items() if isinstance(value, int | float)}
    return Outcome(name, f"{plan.run_folder}/{name}/{FINAL}/model", metrics)


def _loop(run: Run) -> None:
    from stack.training.worker import train  # what it needs takes long to import, and only workers need it

    train(run)


def ray_storage(settings: Settings, path: str) -> tuple[str, Any]:
    """A path in the stack's storage as Ray wants it: with a pyarrow filesystem, None for a local one."""
    if not settings.storage_url:
        return str(settings.home.absolute() / "storage" / path), None
    filesystem, root = open_filesystem(settings.storage_url)
    where = f"{root.rstrip('/')}/{path}"
    if type(filesystem).__name__ == "LocalFileSystem":
        return where, None
    return where, pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))


def _requested(plan: Plan) -> dict[str, float]:
    resources = plan.resources
    requested = {"CPU": resources.cpus_per_worker}
    return requested | ({"GPU": resources.gpus_per_worker} if resources.gpus_per_worker > 0 else {})


def _told(error: Exception) -> BaseException:
    """Why training failed, from Ray's error, which holds those of the workers."""
    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, StackError):
            return cause
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return NotReady("the disk or the server's storage is full: delete what is not needed")
        if isinstance(cause, ray.exceptions.OutOfMemoryError | MemoryError | torch.OutOfMemoryError):
            return NotReady(
                "a training worker ran out of memory: take a smaller batch_size, or activation checkpointing"
            )
        if isinstance(cause, ray.exceptions.RayActorError):
            return NotReady("a training worker died")
    return next((cause for cause in causes if not type(cause).__module__.startswith("ray.")), error)


def _causes(error: BaseException) -> list[BaseException]:
    """An error, those it wraps, and those of all workers."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or any(each is other for other in found):
            continue
        found.append(each)
        waiting += [each.__cause__, getattr(each, "cause", None), getattr(each, "controller_failure", None)]
        waiting += list(getattr(each, "worker_failures", {}).values())
        waiting += [getattr(each, "_base_exc", None), getattr(each, "health_check_failure", None)]
    return found
