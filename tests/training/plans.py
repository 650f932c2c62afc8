"""Plans for tests of what is trained."""

from __future__ import annotations

from typing import Any

from stack.schemas.post_training import (
    DataConfig,
    DPOAlignmentConfig,
    EfficiencyConfig,
    LoraFinetuningConfig,
    OptimizerConfig,
    TrainingConfig,
)
from stack.training.plan import Data, Plan, Resources, Start

ALIGNMENT = DPOAlignmentConfig(reward_scale=0.1, reward_clip=0, epsilon=0, gamma=0)


def lora(**values: Any) -> LoraFinetuningConfig:
    """Rank 4 on q_proj and v_proj."""
    defaults = {
        "lora_attn_modules": ["q_proj", "v_proj"],
        "apply_lora_to_mlp": False,
        "apply_lora_to_output": False,
        "rank": 4,
        "alpha": 8,
    }
    return LoraFinetuningConfig.model_validate(defaults | values)


ALONE = {"ddp_backend": None}
"""Of the trainer's arguments, where no process group is."""


def make_plan(
    algorithm: Any = None,
    *,
    alignment: DPOAlignmentConfig | None = None,
    optimizer: str = "adamw",
    lr: float = 1e-2,
    epochs: int = 1,
    batch_size: int = 2,
    dtype: str = "fp32",
    efficiency: dict[str, bool] | None = None,
    resources: Resources | None = None,
    source: str = "/models/tiny",
) -> Plan:
    return Plan(
        job_uuid="job",
        method="sft" if alignment is None else "dpo",
        start=Start(model_id="tiny", source=source),
        algorithm=algorithm,
        alignment=alignment,
        training=TrainingConfig(
            n_epochs=epochs,
            max_steps_per_epoch=0,
            gradient_accumulation_steps=1,
            max_validation_steps=0,
            data_config=DataConfig(
                dataset_id="rows", batch_size=batch_size, shuffle=False, data_format="dialog"
            ),
            optimizer_config=OptimizerConfig.model_validate(
                {"optimizer_type": optimizer, "lr": lr, "weight_decay": 0.1, "num_warmup_steps": 0}
            ),
            efficiency_config=EfficiencyConfig(**(efficiency or {})),
            dtype=dtype,
        ),
        data=Data(dataset_id="rows", table="rows", rows=8),
        resources=resources or Resources(),
        folder="training/job",
        max_tokens=128,
    )
