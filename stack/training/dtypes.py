"""In which precision a plan computes on a device."""

from __future__ import annotations

import torch

from stack.engine.runners.loading import computes_bfloat16
from stack.training.checks import DTYPES
from stack.training.plan import Plan


def compute_dtype(plan: Plan, device: torch.device) -> torch.dtype:
    """The plan's dtype; float32 instead of a bfloat16 that the hardware would only emulate, more slowly."""
    dtype: torch.dtype = getattr(torch, DTYPES[plan.training.dtype])
    if dtype == torch.bfloat16 and not computes_bfloat16(device):
        return torch.float32
    return dtype


def plan_device(plan: Plan) -> torch.device:
    """What each worker of the plan computes on."""
    return torch.device("cuda" if plan.resources.gpus_per_worker > 0 else "cpu")
