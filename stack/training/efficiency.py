"""`efficiency_config` and the plan's resources -> what the trainer is told."""

from __future__ import annotations

import logging
from typing import Any

from stack.schemas.post_training import EfficiencyConfig
from stack.training.plan import Plan

log = logging.getLogger(__name__)


def efficiency_arguments(plan: Plan) -> dict[str, Any]:
    """For `TrainingArguments`; for SFT, also what TRL's `SFTConfig` adds to it."""
    config = plan.training.efficiency_config or EfficiencyConfig()
    found: dict[str, Any] = {"gradient_checkpointing": config.enable_activation_checkpointing}
    if config.enable_activation_checkpointing:
        # The other kind loses the gradients of a LoRA adapter on frozen weights.
        found["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    if plan.method == "sft":
        found["activation_offloading"] = offloads_activations(plan)
    return found | (fsdp_arguments(config) if shards(plan) else {})


def offloads_activations(plan: Plan) -> bool:
    """On a CPU they are in its memory already."""
    config = plan.training.efficiency_config
    return config is not None and config.enable_activation_offloading and plan.resources.gpus_per_worker > 0


def shards(plan: Plan) -> bool:
    """Whether the weights are divided among the workers (FSDP2) instead of copied to each (DDP).

    Among GPUs only: accelerate (1.15) would go on with DDP on CPUs in silence.
    """
    config = plan.training.efficiency_config or EfficiencyConfig()
    asked = config.memory_efficient_fsdp_wrap or config.fsdp_cpu_offload or plan.resources.strategy == "fsdp"
    if not asked or plan.resources.workers == 1:
        return False
    if plan.resources.gpus_per_worker == 0:
        log.warning("workers without GPUs each hold the whole model: FSDP divides it among GPUs only")
        return False
    return True


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
