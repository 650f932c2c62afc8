"""A run of Ray Train within a job: what its workers are told, and what it leaves, as the API shows it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from stack.store.jobs import Lease
from stack.training.plan import Plan

RUN = "run"
"""The name of a job's only run, where there is no search."""

FINAL = "final"
"""The checkpoint that a run ends with: its folder `model` is what is served."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a worker is told. `name` is the run's in its job: RUN, or a trial's."""

    plan: Plan
    lease: Lease
    name: str
    item: int  # of the job, for the checkpoint at step 0; later ones follow
    evaluations_per_epoch: int = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The spec lets a checkpoint be any object."""

    identifier: str
    job_uuid: str
    path: str  # in the storage
    step: int
    created_at: datetime
    metrics: dict[str, float]

    @classmethod
    def of(cls, plan: Plan, run: str, step: int, metrics: dict[str, float]) -> Checkpoint:
        """The one that `run` stored now."""
        name = f"checkpoint-{step}"
        prefix = f"{plan.job_uuid}/" if run == RUN else f"{plan.job_uuid}/{run}/"
        path = f"{plan.run_folder}/{run}/{name}"
        return cls(prefix + name, plan.job_uuid, path, step, datetime.now(UTC), metrics)

    def shown(self) -> dict[str, Any]:
        return {
            "identifier": self.identifier,
            "job_uuid": self.job_uuid,
            "created_at": self.created_at.isoformat(),
            "step": self.step,
            "epoch": self.metrics.get("epoch"),
            "path": self.path,
            "training_metrics": self.metrics,
        }
