"""What is wrong with a request's numbers and names, as far as they can be judged by themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from stack.errors import BadRequest
from stack.schemas.post_training import (
    AlgorithmConfig,
    DPOAlignmentConfig,
    LoraFinetuningConfig,
    QATFinetuningConfig,
    TrainingConfig,
)
from stack.settings import Settings
from stack.training.modules import Linears, canonical

DTYPES = {
    "bf16": "bfloat16", "bfloat16": "bfloat16",
    "fp32": "float32", "float32": "float32",
    "fp16": "float16", "float16": "float16",
}  # fmt: skip
"""The names of a dtype in requests -> PyTorch's."""

QUANTIZERS = (
    "int8_dynamic_act_int4_weight",
    "Int8DynActInt4WeightQATQuantizer",
    "int4_weight_only",
    "Int4WeightOnlyQATQuantizer",
)

_MANY = 10**9


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that make sense; `above`: not the lowest itself, `below`: not the highest."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        enough = value > self.low if self.above else value >= self.low
        return enough and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        return f"{'above' if self.above else 'at least'} {self.low:g} and " + (
            f"below {self.high:g}" if self.below else f"at most {self.high:g}"
        )


TRAINING = {
    "n_epochs": Range(1, 10_000),
    "max_steps_per_epoch": Range(0, _MANY),
    "gradient_accumulation_steps": Range(1, 65_536),
    "max_validation_steps": Range(0, _MANY),
    "data_config.batch_size": Range(1, 65_536),
    "optimizer_config.lr": Range(0, 10, above=True),
    "optimizer_config.weight_decay": Range(0, 10),
    "optimizer_config.num_warmup_steps": Range(0, _MANY),
}
LORA = {"rank": Range(1, 4096), "alpha": Range(1, 1_000_000)}
QAT = {"group_size": Range(1, _MANY)}
DPO = {
    "reward_scale": Range(0, 1e4, above=True),
    "reward_clip": Range(0, 1e6),
    "epsilon": Range(0, 0.5, below=True),
    "gamma": Range(-1e6, 1e6),
}


def check_numbers(
    training: TrainingConfig, algorithm: AlgorithmConfig | None, alignment: DPOAlignmentConfig | None
) -> None:
    """Raises BadRequest, which names the field, its limits and the value."""
    _check("training_config", training, TRAINING)
    if isinstance(algorithm, LoraFinetuningConfig):
        _check("algorithm_config", algorithm, LORA)
    elif algorithm is not None:
        _check("algorithm_config", algorithm, QAT)
    if alignment is not None:
        _check("algorithm_config", alignment, DPO)


def check_dtype(dtype: str, settings: Settings) -> None:
    name = DTYPES.get(dtype)
    if name is None:
        raise BadRequest(f"training_config.dtype: one of {', '.join(DTYPES)}, not {dtype[:40]!r}")
    if name == "float16" and settings.train_gpus == 0:
        raise BadRequest(
            f"training_config.dtype: {dtype} needs a GPU, and training has none (STACK_TRAIN_GPUS is 0); "
            "take bf16 or fp32"
        )


def check_preferences(training: TrainingConfig) -> None:
    """What preference-optimize has no use for is not ignored in silence."""
    for name in ("packed", "train_on_input"):
        if getattr(training.data_config, name):
            raise BadRequest(
                f"training_config.data_config.{name}: is for supervised-fine-tune; leave it out, since "
                "preference-optimize learns from pairs of answers one by one"
            )


def check_lora(config: LoraFinetuningConfig, known: Linears | None) -> LoraFinetuningConfig:
    """With transformers' names of the modules. `known` is None for a model that is not here yet."""
    names = list(dict.fromkeys(map(canonical, config.lora_attn_modules)))
    if not names and not config.apply_lora_to_mlp and not config.apply_lora_to_output:
        raise BadRequest(
            "algorithm_config: nothing would be trained; name lora_attn_modules"
            + (f" ({_listed(known.attention)})" if known else ", e.g. q_proj and v_proj")
            + ", or set apply_lora_to_mlp or apply_lora_to_output"
        )
    for name in names:
        if known is not None and name not in known.attention:
            raise BadRequest(
                f"algorithm_config.lora_attn_modules: the model's attention has no {name[:80]!r}; it has "
                f"{_listed(known.attention)}"
            )
    if known is not None and config.apply_lora_to_mlp and not known.mlp:
        raise BadRequest("algorithm_config.apply_lora_to_mlp: the model has no linear layers in MLPs")
    return config.model_copy(update={"lora_attn_modules": names})


def check_quantizer(config: QATFinetuningConfig, known: Linears | None) -> QATFinetuningConfig:
    """Raises BadRequest for a quantizer that does not exist, or groups that do not fit the model."""
    if config.quantizer_name not in QUANTIZERS:
        raise BadRequest(
            f"algorithm_config.quantizer_name: one of {', '.join(QUANTIZERS)}, not "
            f"{config.quantizer_name[:80]!r}"
        )
    size = config.group_size
    if known is not None and (width := next((w for w in sorted(known.widths) if w % size), None)) is not None:
        raise BadRequest(
            f"algorithm_config.group_size: a layer of the model takes {width} inputs, which groups of {size} "
            "do not divide; take e.g. 32 or 64"
        )
    return config


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _check(where: str, config: BaseModel, ranges: Mapping[str, Range]) -> None:
    for path, value in _numbers(config.model_dump()):
        if path in ranges and value not in ranges[path]:
            raise BadRequest(f"{where}.{path}: {ranges[path]}, not {value}")


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of nested objects, by their dotted paths."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, value
