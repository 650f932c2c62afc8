"""How one model is served: the arguments of its Ray Serve application, from YAML or from a registration."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ProviderId = Literal["transformers", "sentence-transformers", "openai"]


class ModelArgs(BaseModel):
    """`args:` of a model application in YAML, and what a registration's `metadata` may set.

    Fields that a registration may set are listed in `SERVING_FIELDS`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_id: str = Field(min_length=1, description="The identifier that clients use.")
    source: str = Field(min_length=1, description="Where the weights are: see stack.models.sources.")
    model_type: Literal["llm", "embedding"] = "llm"
    provider_id: ProviderId = "transformers"
    metadata: dict[str, Any] = Field(default_factory=dict, description="Shown as the model's metadata.")

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 where the hardware computes it, else float32."
    )
    context_length: int | None = Field(
        None, ge=16, description="Tokens; default: the model's own, at most 8192."
    )
    max_batch: int = Field(32, ge=1, le=1024, description="Requests that decode together on a replica.")
    max_queue: int = Field(256, ge=0, description="Requests that may wait on a replica; beyond it 429.")
    max_adapters: int = Field(
        16, ge=1, le=1024, description="LoRA adapters that a replica holds; the least recently used one goes."
    )
    num_cpus: float = Field(1.0, gt=0, description="CPUs that Ray sets aside for a replica.")
    threads: int | Literal["all"] | None = Field(
        None,
        description="Compute threads of a replica; all: as many as the machine has CPUs. Default: num_cpus.",
    )
    num_gpus: float = Field(0.0, ge=0, description="GPUs of a replica.")
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    target_ongoing_requests: float = Field(16.0, gt=0, description="Autoscaling's aim per replica.")

    @property
    def thread_count(self) -> int:
        """Compute threads of a replica on this machine."""
        if self.threads == "all":
            return os.cpu_count() or 1
        return self.threads or max(1, int(self.num_cpus))


SERVING_FIELDS = frozenset(ModelArgs.model_fields) - {
    "model_id", "source", "model_type", "provider_id", "metadata",
}  # fmt: skip
