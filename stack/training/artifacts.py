"""What a run leaves, as the API shows it: the spec lets a checkpoint be any object."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from stack.training.plan import Plan


@dataclass(frozen=True, slots=True)
class Checkpoint:
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


RUN = "run"
"""The name of a job's only run, where there is no search."""
