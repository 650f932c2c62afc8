"""LoRA adapters as PEFT writes them: adapter_config.json beside adapter_model.safetensors.

Read without torch or PEFT, since API replicas check registrations with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from stack.errors import BadRequest

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every tensor's name, before the module's own
_TENSOR = re.compile(r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(\.weight)?")

# Of PEFT 0.21's LoraConfig: what changes the model's output in a way that is not computed here.
_NOT_SERVED = (
    "modules_to_save", "trainable_token_indices", "layer_replication", "target_parameters", "lora_bias",
    "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config",
    "monteclora_config", "ensure_weight_tying",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What of adapter_config.json counts when text is generated."""

    alpha: float
    alpha_pattern: Mapping[str, float]
    rslora: bool  # scale by alpha / sqrt(rank) (Kalajdzievski 2023)
    dora: bool  # a magnitude for each output (Liu et al. 2024)

    def scaling(self, module: str, rank: int) -> float:
        """Of lora_B @ lora_A. `rank` is that of the module's tensors, so rank_pattern is not asked."""
        alpha = next((a for key, a in self.alpha_pattern.items() if _matches(key, module)), self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def is_adapter(names: Collection[str]) -> bool:
    """Whether a folder with these files is an adapter and not a whole model."""
    weights = {name for name in names if name.endswith(".safetensors") and "/" not in name}
    return CONFIG in names and weights == {WEIGHTS}


def read_config(config: Any, where: str) -> LoraConfig:
    """Check adapter_config.json's value. BadRequest names what is not served."""
    if not isinstance(config, dict):
        raise BadRequest(f"{where}: {CONFIG} is not a JSON object")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise BadRequest(f"{where} is an adapter of type {kind}; adapters of type LORA are served")
    bias = config.get("bias", "none")
    if bias != "none":
        raise BadRequest(
            f"{where} trains biases (bias is {bias!r}), which is not served; train with bias 'none'"
        )
    if extra := next((name for name in _NOT_SERVED if config.get(name)), None):
        raise BadRequest(
            f"{where} has {extra}, which is not served: merge the adapter into its base model "
            "(merge_and_unload of PEFT) and register the result as a model"
        )
    pattern = config.get("alpha_pattern") or {}
    # PEFT takes regular expressions; a caller's could run for ever.
    if odd := next((key for key in pattern if not re.fullmatch(r"[\w.]+", key)), None):
        raise BadRequest(f"{where}: alpha_pattern has {odd!r}; only names of modules are served, no patterns")
    try:
        return LoraConfig(
            alpha=float(config["lora_alpha"]),
            alpha_pattern={key: float(value) for key, value in pattern.items()},
            rslora=bool(config.get("use_rslora")),
            dora=bool(config.get("use_dora")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadRequest(f"{where}: {CONFIG} has no number lora_alpha, or a wrong alpha_pattern") from error


def _matches(key: str, module: str) -> bool:
    return module == key or module.endswith("." + key)


def part_of(tensor: str, where: str) -> tuple[str, str] | None:
    """A tensor's name -> its module in the base model, and lora_A, lora_B or lora_magnitude_vector.

    None for copies of the base model's own weights, which PEFT saves with an adapter of an output layer.
    BadRequest for what is neither.
    """
    name = tensor.removeprefix(PREFIX)
    if (match := _TENSOR.fullmatch(name)) is not None:
        return match["module"], match["part"]
    if ".base_layer." in name or re.fullmatch(r"(.+\.)?(embed_tokens|wte|embed_in|lm_head)\.weight", name):
        return None
    raise BadRequest(f"{where} has the tensor {name!r}, which is not served: LoRA of linear layers is")


Shapes = Mapping[str, tuple[int, ...]]
"""Of the tensors of safetensors files, by name."""


def check_shapes(adapter: Shapes, base: Shapes, where: str) -> None:
    """BadRequest for what surely does not fit the base model.

    A module that the base model's files do not name is left to the loading: some architectures are saved
    under other names than they have in memory.
    """
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in adapter.items():
        if (found := part_of(name, where)) is not None:
            parts.setdefault(found[0], {})[found[1]] = shape
    if not parts:
        raise BadRequest(f"{where}: {WEIGHTS} has no LoRA tensors")
    for module, shapes in parts.items():
        inputs, outputs = module_shape(module, shapes, where)
        weight = base.get(f"{module}.weight") or base.get(f"{module.partition('.')[2]}.weight")
        if weight is not None and sorted(weight) != sorted((inputs, outputs)):
            raise BadRequest(
                f"{where} was made for another model: its {module} takes {inputs} and gives {outputs} "
                f"numbers, but the base model's weight there has the shape {list(weight)}"
            )


def module_shape(module: str, shapes: Shapes, where: str) -> tuple[int, int]:
    """A module's (inputs, outputs) by the shapes of its parts; BadRequest when they are no pair."""
    a, b, magnitude = (shapes.get(part) for part in ("lora_A", "lora_B", "lora_magnitude_vector"))
    if a is None or b is None or len(a) != 2 or len(b) != 2 or a[0] != b[1] or not a[0]:
        raise BadRequest(f"{where}: lora_A and lora_B of {module} are missing or are no pair of matrices")
    if magnitude is not None and magnitude != (b[0],):
        raise BadRequest(f"{where}: the magnitudes of {module} are {list(magnitude)}, not [{b[0]}]")
    return a[1], b[0]
