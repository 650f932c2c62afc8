"""What a training job does, resolved and checked when it is submitted; a job's `request` is a Plan.

Everything below works from a Plan alone: what was registered or set when the job was submitted counts.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stack.jobs.logs import files_of
from stack.schemas.post_training import AlgorithmConfig, DPOAlignmentConfig, TrainingConfig

KINDS: dict[str, str] = {"supervised-fine-tune": "sft", "preference-optimize": "dpo"}
"""A job's kind -> the plan's method."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Start(_Part):
    """The model that training begins with."""

    model_id: str = Field(description="The base model; an adapter's is served by its replicas.")
    source: str = Field(description="The base model's weights, see stack.models.sources.")
    adapter: str | None = Field(
        None, description="The source of a LoRA adapter on it that training goes on from."
    )


class Data(_Part):
    """A dataset as it is when the job begins."""

    dataset_id: str
    table: str = Field(description="Its LanceDB table: another one once it is registered anew.")
    rows: int = Field(ge=1, description="Rows appended later are not seen.")


class Resources(_Part):
    """What each run gets. Shown as `resources_allocated`."""

    workers: int = 1
    cpus_per_worker: float = 0.01
    gpus_per_worker: float = 0.0
    threads_per_worker: int | None = Field(None, description="None: the node's CPUs, shared by its workers.")
    strategy: Literal["ddp", "fsdp"] = "ddp"


class Parameter(_Part):
    """What a search may set a hyperparameter to."""

    type: Literal["grid", "choice", "uniform", "loguniform", "randint"]
    values: list[Any] | None = None  # grid, choice
    min: float | None = None  # the others
    max: float | None = None


class Search(_Part):
    """A search by Ray Tune."""

    parameters: dict[str, Parameter] = Field(min_length=1)
    num_trials: int = Field(8, ge=1, le=1000, description="Samples; each goes through the whole grid.")
    max_concurrent_trials: int = Field(1, ge=1, le=100)
    scheduler: Literal["asha", "none"] = "asha"
    metric: str = "validation_loss"
    mode: Literal["min", "max"] = "min"
    seed: int = 0


class Loggers(_Part):
    """Beside TensorBoard, which always writes. Values are the callers' names, e.g. {"experiment": "x"}."""

    mlflow: dict[str, str] | None = None
    wandb: dict[str, str] | None = None


class Plan(_Part):
    job_uuid: str
    method: Literal["sft", "dpo"]
    start: Start
    algorithm: AlgorithmConfig | None = Field(None, description="None: all weights are trained.")
    alignment: DPOAlignmentConfig | None = None  # of dpo
    training: TrainingConfig
    data: Data
    validation: Data | None = None
    search: Search | None = None
    loggers: Loggers = Loggers()
    resources: Resources = Resources()
    folder: str = Field(description="In the storage: checkpoints, the model, logs.")
    max_tokens: int = Field(description="Longer sequences are cut; the length of a pack.")
    checkpoint_s: float = 300.0
    checkpoints_kept: int = 3
    seed: int = 42

    @property
    def trains_adapter(self) -> bool:
        """Whether the result is a LoRA adapter; else it is a whole model."""
        return self.algorithm is not None and self.algorithm.type == "LoRA"

    @property
    def run_folder(self) -> str:
        """Where Ray Train keeps the checkpoints of runs, each in a folder of its name."""
        return f"{self.folder}/runs"

    @property
    def work_folder(self) -> str:
        """What attempts of the job hand on to the next one. It is freed with the job's log."""
        return f"{files_of(self.job_uuid)}/training"
