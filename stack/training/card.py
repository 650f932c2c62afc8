"""The model card that is written with every checkpoint, in the form of the Hugging Face hub."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import yaml

from stack.models.hub import HubSource
from stack.models.sources import parse
from stack.training.dtypes import compute_dtype
from stack.training.plan import Data, Plan

if TYPE_CHECKING:
    import torch
    from transformers import TrainerState

_PACKAGES = ("stack", "torch", "transformers", "peft", "trl", "torchao", "ray")


def model_card(plan: Plan, state: TrainerState, metrics: dict[str, float], device: torch.device) -> str:
    """Base model, data and its version, parameters, metrics and the code's versions; no path of a machine."""
    source = parse(plan.start.source)
    hub_id = plan.start.source if isinstance(source, HubSource) else None
    front: dict[str, Any] = {
        "library_name": "peft" if plan.trains_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["stack", plan.method] + (["lora"] if plan.trains_adapter else []),
    }
    if hub_id is not None:
        front["base_model"] = hub_id
    sections: dict[str, dict[str, Any]] = {
        "Training": {
            "method": "supervised fine-tuning" if plan.method == "sft" else "direct preference optimisation",
            "base model": plan.start.model_id,
            "started from": (plan.start.adapter and "an adapter") or "the base model",
            "steps": f"{state.global_step} of {state.max_steps}",
            "device": f"{device.type}, {plan.resources.workers} workers ({plan.resources.strategy})",
            "computed in": str(compute_dtype(plan, device)).removeprefix("torch."),
            "seed": plan.seed,
            "longest sequence": f"{plan.max_tokens} tokens",
        },
        "Data": {
            "training": _data(plan.data),
            "validation": "none" if plan.validation is None else _data(plan.validation),
        },
        "Metrics": metrics,
        "Versions": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
    }
    parameters = plan.model_dump(
        mode="json", include={"training", "algorithm", "alignment"}, exclude_none=True
    )
    return "\n\n".join(
        [
            f"---\n{yaml.safe_dump(front, sort_keys=True)}---",
            f"# {plan.job_uuid}",
            *(f"## {title}\n\n{_table(rows)}" for title, rows in sections.items()),
            f"## Parameters\n\n```yaml\n{yaml.safe_dump(parameters, sort_keys=False)}```",
            "## Use\n\nOn the server that trained it: ask for the model "
            f"`{plan.job_uuid}`. Elsewhere: with {front['library_name']}.\n",
        ]
    )


def _data(data: Data) -> str:
    return f"dataset `{data.dataset_id}`, its first {data.rows} rows (version `{data.table}`)"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _table(rows: dict[str, Any]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())])
