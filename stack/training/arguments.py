"""A plan -> the arguments of transformers' Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from stack.training.dtypes import compute_dtype, plan_device
from stack.training.efficiency import efficiency_arguments
from stack.training.plan import Plan

LOGGED = 500
"""At most so many losses are kept of a run: each stands for the steps since the last."""


def training_arguments(plan: Plan, output_dir: Path) -> dict[str, Any]:
    """For `TrainingArguments` (DPO) or `SFTConfig`. When to evaluate and to save is left to callbacks."""
    config = plan.training
    device = plan_device(plan)
    dtype = compute_dtype(plan, device)
    batch_size = config.data_config.batch_size
    return {
        "output_dir": str(output_dir),
        "num_train_epochs": config.n_epochs,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "learning_rate": config.optimizer_config.lr,
        "weight_decay": config.optimizer_config.weight_decay,
        "warmup_steps": config.optimizer_config.num_warmup_steps,
        "lr_scheduler_type": "cosine",
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "use_cpu": device.type == "cpu",
        "ddp_backend": "gloo" if device.type == "cpu" else "nccl",
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": device.type == "cuda",
        "seed": plan.seed,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "steps",
        "logging_steps": 1 / LOGGED,
        "logging_first_step": True,
        "include_num_input_tokens_seen": "non_padding",
        "disable_tqdm": True,
        "report_to": "none",
        **efficiency_arguments(plan),
    }


def optimizer(plan: Plan) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """The trainer's `optimizer_cls_and_kwargs`; the trainer adds weight_decay, but for norms and biases.

    `adamw` takes it apart from the gradient, `adam` and `sgd` add it to the gradient (L2), as in PyTorch.
    """
    config = plan.training.optimizer_config
    if config.optimizer_type == "sgd":
        return torch.optim.SGD, {"lr": config.lr}
    kind = torch.optim.AdamW if config.optimizer_type == "adamw" else torch.optim.Adam
    return kind, {"lr": config.lr, "betas": (0.9, 0.999), "eps": 1e-8, "fused": True}
