"""LoRA and DoRA adapters on a base model, through PEFT."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModelForCausalLM, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import load_peft_weights
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from stack.errors import BadRequest
from stack.schemas.post_training import LoraFinetuningConfig
from stack.training.modules import canonical

ADAPTER = "default"
_IN_LAYER = re.compile(r"(?:^|\.)\d+\.(?P<path>.+)\Z")
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


class Adapted(PeftModelForCausalLM):
    """A base model with one adapter, which alone is saved."""

    def save_pretrained(self, save_directory: str, *args: Any, **kwargs: Any) -> None:
        # Else the whole embedding is saved beside an adapter of the output head.
        super().save_pretrained(save_directory, *args, **(kwargs | {"save_embedding_layers": False}))


def add_adapter(base: Any, config: LoraFinetuningConfig, name: str) -> Adapted:
    """A new adapter, with which the model computes what it did before. `name` is the base model's.

    Raises BadRequest when the model lacks a module.
    """
    targets = target_modules(base, config)
    if config.use_dora:
        _check_directions(base, module_paths(base, config))
    model = Adapted(base, _peft_config(base, config, targets, name), ADAPTER)
    return _with_trained_head(model)


def continue_adapter(base: Any, folder: Path, config: LoraFinetuningConfig, name: str) -> Adapted:
    """An earlier job's adapter, to be trained on. Raises BadRequest when `config` is another."""
    found = PeftConfig.from_pretrained(str(folder))
    _check_same(found, config)
    found.inference_mode, found.base_model_name_or_path = False, name
    wanted = set(module_paths(base, config))  # before the adapter's own layers are among them
    model = Adapted(base, found, ADAPTER)
    if (has := _adapted(model)) != wanted:
        raise BadRequest(f"the adapter is on other modules: {_difference(has, wanted)}; ask for the same")
    set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"), ADAPTER)
    return _with_trained_head(model)


def merge_adapter(base: Any, folder: Path) -> Any:
    """The base model with the adapter added to its weights."""
    head = base.get_output_embeddings()
    if "lm_head" in _names(PeftConfig.from_pretrained(str(folder)).target_modules) and _is_tied(base):
        # The adapter is the head's alone.
        head.weight = nn.Parameter(head.weight.detach().clone())
        base.config.tie_word_embeddings = False
        # Else the head would be left out of what is saved.
        base.all_tied_weights_keys = base.get_expanded_tied_weights_keys(all_submodels=False)
    return PeftModelForCausalLM.from_pretrained(base, str(folder)).merge_and_unload(safe_merge=True)


def module_paths(base: Any, config: LoraFinetuningConfig) -> list[str]:
    """Full names of the linear layers that get an adapter. Raises BadRequest for one that does not exist."""
    attention, mlp = _linears(base)
    wanted = {canonical(name) for name in config.lora_attn_modules}
    if missing := wanted - {_leaf(path) for path in attention}:
        raise BadRequest(
            f"algorithm_config.lora_attn_modules: the model's attention has no {sorted(missing)[0]!r}; "
            f"it has {', '.join(sorted({_leaf(path) for path in attention})) or 'none'}"
        )
    if config.apply_lora_to_mlp and not mlp:
        raise BadRequest("algorithm_config.apply_lora_to_mlp: the model has no linear layers in MLPs")
    paths = [path for path in attention if _leaf(path) in wanted]
    paths += mlp if config.apply_lora_to_mlp else []
    return paths + ([_head_path(base)] if config.apply_lora_to_output else [])


def target_modules(base: Any, config: LoraFinetuningConfig) -> list[str]:
    """The shortest names of these modules alone: `q_proj`, but `attn.c_proj` where an MLP has one, too."""
    paths = set(module_paths(base, config))
    every = [path for group in _linears(base) for path in group] + [_head_path(base)]
    ambiguous = {_leaf(path) for path in every if path not in paths}
    names = {_within_layer(path) if _leaf(path) in ambiguous else _leaf(path) for path in paths}
    return sorted(names)


def _linears(base: Any) -> tuple[list[str], list[str]]:
    """Paths of the linear layers of attention, and of the others within the model's layers."""
    attention: list[str] = []
    mlp: list[str] = []
    for path, module in base.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and (found := _IN_LAYER.search(path)) is not None:
            (attention if _ATTENTION.search(found["path"].rpartition(".")[0]) else mlp).append(path)
    return attention, mlp


def _head_path(base: Any) -> str:
    head = base.get_output_embeddings()
    return next(str(path) for path, module in base.named_modules() if module is head)


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _within_layer(path: str) -> str:
    found = _IN_LAYER.search(path)
    return path if found is None else found["path"]


def _peft_config(base: Any, config: LoraFinetuningConfig, targets: list[str], name: str) -> LoraConfig:
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        use_dora=config.use_dora,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
        task_type="CAUSAL_LM",
        base_model_name_or_path=name,
    )


def _check_directions(base: Any, paths: list[str]) -> None:
    """DoRA divides by the norms of rows."""
    for path in paths:
        module = base.get_submodule(path)
        weight = dequantize_module_weight(module)
        if not bool((weight != 0).any(dim=0 if isinstance(module, Conv1D) else 1).all()):
            raise BadRequest(
                f"algorithm_config.use_dora: {path} has an output without weights (all are 0), which has no "
                "direction to scale; leave use_dora out, or that module"
            )


def _check_same(found: PeftConfig, config: LoraFinetuningConfig) -> None:
    if not isinstance(found, LoraConfig):
        raise BadRequest(f"the adapter is of type {found.peft_type}; LoRA adapters are trained")
    has = {"rank": found.r, "alpha": found.lora_alpha, "use_dora": bool(found.use_dora)}
    for key, value in has.items():
        if value != (asked := getattr(config, key)):
            raise BadRequest(
                f"algorithm_config.{key}: the adapter has {value}, not {asked}; ask for the same to train it "
                "on, or leave algorithm_config out to train all weights with the adapter merged in"
            )


def _adapted(model: Adapted) -> set[str]:
    base: Any = model.get_base_model()
    return {path for path, module in base.named_modules() if isinstance(module, LoraLayer)}


def _difference(has: set[str], wanted: set[str]) -> str:
    return f"with {sorted(has - wanted)[:3]}, without {sorted(wanted - has)[:3]}"


def _names(target_modules: Any) -> set[str]:
    return {target_modules} if isinstance(target_modules, str) else set(target_modules or ())


def _is_tied(base: Any) -> bool:
    return base.get_output_embeddings().weight is base.get_input_embeddings().weight


class _MergedHead:
    """The output head with its adapter, as one matrix: TRL's fused head multiplies by `weight` itself."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    @property
    def weight(self) -> Tensor:
        """[vocabulary, hidden], with gradients for the adapter."""
        layer, weight = self._layer, self._layer.get_base_layer().weight
        delta = layer.get_delta_weight(ADAPTER)
        merged = weight.float() + delta
        if layer.use_dora[ADAPTER]:
            magnitude = layer.lora_magnitude_vector[ADAPTER].weight
            # The norm is a constant (Liu et al. 2024, section 4.3).
            merged = merged * (magnitude / merged.norm(dim=1).detach())[:, None]
        found: Tensor = merged.to(weight.dtype)
        return found

    @property
    def bias(self) -> Tensor | None:
        found: Tensor | None = self._layer.get_base_layer().bias
        return found


def _with_trained_head(model: Adapted) -> Adapted:
    """TRL refuses an adapter on the output head, since its fused head would not see it: show it the sum."""
    base: Any = model.get_base_model()
    if isinstance(head := base.get_output_embeddings(), LoraLayer):
        merged = _MergedHead(head)
        base.get_output_embeddings = lambda: merged
    return model
