"""`efficiency_config` and the plan's resources -> what the trainer is told."""

from __future__ import annotations

from typing import Any, Literal

from stack.errors import BadRequest
from stack.schemas.post_training import AlgorithmConfig, EfficiencyConfig, LoraFinetuningConfig
from stack.settings import Settings
from stack.training.plan import Plan


def efficiency_arguments(plan: Plan) -> dict[str, Any]:
    """For `TrainingArguments`; for SFT, also what TRL's `SFTConfig` adds to it."""
    config = plan.training.efficiency_config or EfficiencyConfig()
    found: dict[str, Any] = {"gradient_checkpointing": config.enable_activation_checkpointing}
    if config.enable_activation_checkpointing:
        # The other kind loses the gradients of a LoRA adapter on frozen weights.
        found["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    if plan.method == "sft":
        found["activation_offloading"] = offloads_activations(plan)
    return found | (fsdp_arguments(config) if plan.resources.strategy == "fsdp" else {})


def offloads_activations(plan: Plan) -> bool:
    """On a CPU they are in its memory already."""
    config = plan.training.efficiency_config
    return config is not None and config.enable_activation_offloading and plan.resources.gpus_per_worker > 0


def strategy_of(config: EfficiencyConfig | None, settings: Settings) -> Literal["ddp", "fsdp"]:
    """How workers share the model: each has it whole (DDP), or a part of it (FSDP2). One has it whole.

    Raises BadRequest for a division that is asked for among workers without GPUs: accelerate (1.15) would go
    on with DDP in silence.
    """
    asked = config is not None and (config.memory_efficient_fsdp_wrap or config.fsdp_cpu_offload)
    if settings.train_workers == 1 or not (asked or settings.train_strategy == "fsdp"):
        return "ddp"
    if settings.train_gpus == 0:
        where = "training_config.efficiency_config" if asked else "STACK_TRAIN_STRATEGY"
        raise BadRequest(
            f"{where}: FSDP divides a model among GPUs, and this server's training workers have none "
            "(STACK_TRAIN_GPUS); leave it out, or set that"
        )
    return "fsdp"


def check_divisible(strategy: str, algorithm: AlgorithmConfig | None) -> None:
    """Raises BadRequest for what FSDP cannot divide."""
    if strategy != "fsdp" or not isinstance(algorithm, LoraFinetuningConfig):
        return
    for name in ("quantize_base", "apply_lora_to_output"):
        if getattr(algorithm, name):
            raise BadRequest(
                f"algorithm_config.{name}: does not go together with FSDP; leave it out, or train without "
                "FSDP (efficiency_config, STACK_TRAIN_STRATEGY)"
            )


def fsdp_arguments(config: EfficiencyConfig) -> dict[str, Any]:
    """A group of shards for each of the model's layers, and for the embeddings and the head by themselves."""
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "cpu_offload": config.fsdp_cpu_offload,
        },
    }
