"""PostTraining: supervised fine-tuning and preference optimisation, as jobs."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypeAliasType

from stack.schemas.common import DateTime, Identifier, JobStatus, JsonObject, Schema

DatasetFormat = TypeAliasType("DatasetFormat", Literal["instruct", "dialog"])
OptimizerType = TypeAliasType("OptimizerType", Literal["adam", "adamw", "sgd"])

Checkpoint = TypeAliasType("Checkpoint", JsonObject)
"""A checkpoint of a training run."""


class DataConfig(Schema):
    dataset_id: str
    batch_size: int = Field(ge=1)
    shuffle: bool
    data_format: DatasetFormat
    validation_dataset_id: str | None = None
    packed: bool = False
    train_on_input: bool = False


class OptimizerConfig(Schema):
    optimizer_type: OptimizerType
    lr: float
    weight_decay: float
    num_warmup_steps: int


class EfficiencyConfig(Schema):
    enable_activation_checkpointing: bool = False
    enable_activation_offloading: bool = False
    memory_efficient_fsdp_wrap: bool = False
    fsdp_cpu_offload: bool = False


class TrainingConfig(Schema):
    n_epochs: int
    max_steps_per_epoch: int
    gradient_accumulation_steps: int
    max_validation_steps: int
    data_config: DataConfig
    optimizer_config: OptimizerConfig
    efficiency_config: EfficiencyConfig | None = None
    dtype: str = "bf16"


class LoraFinetuningConfig(Schema):
    """Low-rank adapters (Hu et al. 2021)."""

    type: Literal["LoRA"] = "LoRA"
    lora_attn_modules: list[str]
    apply_lora_to_mlp: bool
    apply_lora_to_output: bool
    rank: int
    alpha: int
    use_dora: bool = Field(False, description="Weight-decomposed adapters (Liu et al. 2024)")
    quantize_base: bool = False


class QATFinetuningConfig(Schema):
    """Quantisation-aware training."""

    type: Literal["QAT"] = "QAT"
    quantizer_name: str
    group_size: int


AlgorithmConfig = TypeAliasType(
    "AlgorithmConfig",
    Annotated[LoraFinetuningConfig | QATFinetuningConfig, Field(discriminator="type")],
)


class DPOAlignmentConfig(Schema):
    """Direct preference optimisation (Rafailov et al. 2023)."""

    reward_scale: float = Field(description="DPO's beta")
    reward_clip: float = Field(description="Bound of each implicit reward; 0: none")
    epsilon: float = Field(description="Label smoothing of conservative DPO")
    gamma: float = Field(description="Margin subtracted from the scaled reward difference")


class SupervisedFineTuneRequest(Schema):
    job_uuid: Identifier
    training_config: TrainingConfig
    hyperparam_search_config: JsonObject
    logger_config: JsonObject
    model: str
    checkpoint_dir: str | None = None
    algorithm_config: AlgorithmConfig | None = None


class PreferenceOptimizeRequest(Schema):
    job_uuid: Identifier
    finetuned_model: str
    algorithm_config: DPOAlignmentConfig
    training_config: TrainingConfig
    hyperparam_search_config: JsonObject
    logger_config: JsonObject


class PostTrainingJob(Schema):
    job_uuid: str


class ListPostTrainingJobsResponse(Schema):
    data: list[PostTrainingJob]


class CancelTrainingJobRequest(Schema):
    job_uuid: str


class PostTrainingJobStatusResponse(Schema):
    """Status of a finetuning job."""

    job_uuid: str
    status: JobStatus
    scheduled_at: DateTime | None = None
    started_at: DateTime | None = None
    completed_at: DateTime | None = None
    resources_allocated: JsonObject | None = None
    checkpoints: list[Checkpoint]


class PostTrainingJobArtifactsResponse(Schema):
    """Artifacts of a finetuning job."""

    job_uuid: str
    checkpoints: list[Checkpoint]
