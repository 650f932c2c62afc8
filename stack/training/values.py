"""A plan with other hyperparameters, as the trials of a search have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from stack.errors import BadRequest
from stack.training.plan import Plan

_PLACES: dict[str, tuple[str, ...]] = {
    "training": ("n_epochs", "max_steps_per_epoch", "gradient_accumulation_steps"),
    "training.data_config": ("batch_size", "shuffle", "packed"),
    "training.optimizer_config": ("optimizer_type", "lr", "weight_decay", "num_warmup_steps"),
    "algorithm": ("rank", "alpha", "use_dora", "apply_lora_to_mlp", "apply_lora_to_output", "group_size"),
    "alignment": ("reward_scale", "reward_clip", "epsilon", "gamma"),
}
"""Where in a plan each hyperparameter is. What changes the tokens is not among them: trials share these."""

NAMES = frozenset(name for names in _PLACES.values() for name in names)


def with_values(plan: Plan, values: Mapping[str, Any]) -> Plan:
    """The plan with these hyperparameters. Raises BadRequest for one that it does not have or cannot take."""
    dumped = plan.model_dump(mode="json")
    for name, value in values.items():
        place = _part(dumped, name)
        if place is None or name not in place:
            raise BadRequest(f"{name!r} is not a hyperparameter of this job: {_why(name)}")
        place[name] = value
    try:
        return Plan.model_validate(dumped)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadRequest(f"{first['loc'][-1]}: {first['msg']}") from None


def _part(dumped: dict[str, Any], name: str) -> dict[str, Any] | None:
    path = next((path for path, names in _PLACES.items() if name in names), None)
    part: Any = dumped
    for key in [] if path is None else path.split("."):
        part = part and part.get(key)
    return None if path is None else part


def _why(name: str) -> str:
    if name in _PLACES["algorithm"]:
        return "its algorithm_config has none"
    if name in _PLACES["alignment"]:
        return "only preference-optimize has it"
    return f"known are {', '.join(sorted(NAMES))}"
