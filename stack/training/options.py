"""hyperparam_search_config and logger_config: free-form in the spec, checked here."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from stack.errors import BadRequest
from stack.schemas.post_training import LoraFinetuningConfig
from stack.training.checks import check_lora, check_numbers, check_preferences, check_quantizer
from stack.training.modules import Linears
from stack.training.plan import Loggers, Parameter, Plan, Search
from stack.training.values import NAMES, with_values

SEARCH, LOGGERS = "hyperparam_search_config", "logger_config"
MAX_VALUES = 100
MAX_TRIALS = 1000
MAX_PARAMETERS = 20
HIGHER_IS_BETTER = ("rewards/margins", "rewards/accuracies", "rewards/chosen")
_DPO = (*HIGHER_IS_BETTER, "chosen_loss")
METRICS = {
    "sft": ("train_loss", "validation_loss", "perplexity"),
    "dpo": ("train_loss", "validation_loss", *_DPO, *(f"validation_{metric}" for metric in _DPO)),
}
"""What the trials of a method report."""

_LOGGER_FIELDS = {"mlflow": ("experiment", "run_name"), "wandb": ("project", "name")}
_MAX_NAME = 128
_NOT_IN_WANDB = frozenset("/\\#?%:")  # which it refuses in a project's name

M = TypeVar("M", bound=BaseModel)


def parse_search(config: Mapping[str, Any], method: str, has_validation: bool) -> Search | None:
    """None for an empty object. Raises BadRequest for what cannot be searched, but see `check_trials`."""
    if not config:
        return None
    metrics = METRICS[method]
    values = {"metric": "validation_loss" if has_validation else "train_loss"} | dict(config)
    if "mode" not in values and isinstance(values["metric"], str):
        values["mode"] = "max" if values["metric"].endswith(HIGHER_IS_BETTER) else "min"
    search = _parse(SEARCH, Search, values)
    if search.metric not in metrics:
        raise BadRequest(f"{SEARCH}.metric: one of {', '.join(metrics)}, not {search.metric[:80]!r}")
    if search.metric.startswith(("validation", "perplexity")) and not has_validation:
        raise BadRequest(
            f"{SEARCH}.metric: {search.metric} needs training_config.data_config.validation_dataset_id; give "
            "it, or take train_loss"
        )
    if not 0 <= search.seed < 1 << 32:
        raise BadRequest(f"{SEARCH}.seed: from 0 to {(1 << 32) - 1}, not {str(search.seed)[:80]}")
    if len(search.parameters) > MAX_PARAMETERS:
        raise BadRequest(
            f"{SEARCH}.parameters: at most {MAX_PARAMETERS} are searched, not {len(search.parameters)}"
        )
    for name, parameter in search.parameters.items():
        _check_parameter(f"{SEARCH}.parameters.{name[:80]}", parameter)
    trials = search.num_trials * math.prod(
        len(p.values or ()) for p in search.parameters.values() if p.type == "grid"
    )
    if trials > MAX_TRIALS:
        raise BadRequest(
            f"{SEARCH}: num_trials times the grid's points are {trials} trials, at most {MAX_TRIALS} are run"
        )
    return search


def _check_parameter(where: str, parameter: Parameter) -> None:
    if parameter.type in ("grid", "choice"):
        if parameter.min is not None or parameter.max is not None:
            raise BadRequest(f"{where}: {parameter.type} has values, no min and max")
        if not parameter.values or len(parameter.values) > MAX_VALUES:
            raise BadRequest(f"{where}.values: a list of 1 to {MAX_VALUES} values is needed")
        if any(not isinstance(value, bool | int | float | str) for value in parameter.values):
            raise BadRequest(f"{where}.values: numbers, texts, true or false, and nothing else")
        return
    if parameter.values is not None:
        raise BadRequest(f"{where}: {parameter.type} has min and max, no values")
    if parameter.min is None or parameter.max is None:
        raise BadRequest(f"{where}: {parameter.type} needs min and max")
    if not (math.isfinite(parameter.min) and math.isfinite(parameter.max) and parameter.min < parameter.max):
        raise BadRequest(f"{where}: min is below max, not {parameter.min:g} and {parameter.max:g}")
    if parameter.type == "loguniform" and parameter.min <= 0:
        raise BadRequest(f"{where}.min: loguniform begins above 0, not at {parameter.min:g}")
    if parameter.type == "randint" and not (parameter.min.is_integer() and parameter.max.is_integer()):
        raise BadRequest(f"{where}: randint is between whole numbers, min and below max")


def probes(parameter: Parameter) -> list[Any]:
    """All values of a list; of a range its ends, and between them a number that is not whole."""
    if parameter.values is not None:
        return parameter.values
    low, high = parameter.min or 0.0, parameter.max or 0.0
    if parameter.type == "randint":
        return [int(low), int(high) - 1]
    return [low, low + (high - low) / math.pi, high]


def parse_loggers(config: Mapping[str, Any]) -> Loggers:
    """Raises BadRequest for unknown loggers and fields, and for addresses, which are the operator's."""
    loggers = _parse(LOGGERS, Loggers, config)
    for logger, fields in _LOGGER_FIELDS.items():
        if getattr(loggers, logger) is not None and importlib.util.find_spec(logger) is None:
            raise BadRequest(
                f"{LOGGERS}.{logger}: is not installed on the server: pip install "
                f"'stack[{logger}]', or leave it out"
            )
        for name, value in (getattr(loggers, logger) or {}).items():
            where = f"{LOGGERS}.{logger}.{name[:80]}"
            if name not in fields:
                raise BadRequest(
                    f"{where}: there is no such field; known are {', '.join(fields)}. Where the server of "
                    f"{logger} is, and its key, are settings of this server"
                )
            if not value.strip() or not value.isprintable() or len(value) > _MAX_NAME or "://" in value:
                raise BadRequest(
                    f"{where}: a name of at most {_MAX_NAME} characters, no URL, not {value[:80]!r}"
                )
            if logger == "wandb" and (odd := sorted(_NOT_IN_WANDB & set(value))):
                raise BadRequest(
                    f"{where}: Weights & Biases takes no {' '.join(odd)} in names, as in {value[:80]!r}"
                )
    return loggers


def _parse(where: str, model: type[M], values: Mapping[str, Any]) -> M:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise BadRequest(_told(where, model, error)) from None


def _told(where: str, model: type[BaseModel], error: ValidationError) -> str:
    first = error.errors()[0]
    path = ".".join(str(part)[:80] for part in (where, *first["loc"]))
    if first["type"] == "missing":
        return f"{path}: is required"
    if first["type"] == "extra_forbidden":
        known = Parameter if len(first["loc"]) > 1 and model is Search else model
        return f"{path}: there is no such field; known are {', '.join(known.model_fields)}"
    message = str(first["msg"])
    return f"{path}: {message[:1].lower()}{message[1:]}, not {str(first['input'])[:80]}"


def check_trials(plan: Plan, known: Linears | None) -> None:
    """Raises BadRequest for a hyperparameter that the plan does not have, or values that it cannot take.

    `known` are the model's layers.
    """
    for name, parameter in plan.search.parameters.items() if plan.search is not None else ():
        where = f"{SEARCH}.parameters.{name[:80]}"
        if name not in NAMES:
            raise BadRequest(
                f"{where}: there is no such hyperparameter; known are {', '.join(sorted(NAMES))}"
            )
        if (
            plan.start.adapter is not None
            and plan.trains_adapter
            and name in LoraFinetuningConfig.model_fields
        ):
            raise BadRequest(f"{where}: an adapter that is there already is trained on as it is")
        for value in probes(parameter):
            try:
                _check_trial(with_values(plan, {name: value}), known)
            except BadRequest as error:
                raise BadRequest(f"{where}: {str(value)[:80]} will not do: {error}") from error


def _check_trial(trial: Plan, known: Linears | None) -> None:
    check_numbers(trial.training, trial.algorithm, trial.alignment)
    if trial.method == "dpo":
        check_preferences(trial.training)
    if isinstance(trial.algorithm, LoraFinetuningConfig):
        check_lora(trial.algorithm, known)
    elif trial.algorithm is not None:
        check_quantizer(trial.algorithm, known)
