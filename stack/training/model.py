"""What a plan trains: a base model with an adapter, or all its weights; and what is left to be served."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import AutoModelForCausalLM, Trainer, set_seed

from stack.models.hub import HubSource
from stack.models.sources import parse
from stack.schemas.post_training import LoraFinetuningConfig, QATFinetuningConfig
from stack.training import qat
from stack.training.dtypes import compute_dtype
from stack.training.lora import Adapted, add_adapter, continue_adapter, merge_adapter
from stack.training.plan import Plan
from stack.training.quantized_base import leave_to_each_worker, quantize_base

log = logging.getLogger(__name__)

QAT_FILE = "qat.json"
"""Beside a model that was trained for quantisation: how to quantise it without loss."""

_TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.tiktoken",
    "chat_template*", "*.spm", "spiece.model", "additional_chat_templates/*",
)  # fmt: skip


def load(plan: Plan, folder: Path, adapter: Path | None, device: torch.device) -> Any:
    """A transformers model whose weights all train, or a PeftModel whose adapter does, on `device`.

    Full and quantisation-aware training: weights in float32. LoRA: the base in the plan's dtype, the
    adapter in float32. Raises BadRequest for what the model's structure rules out.
    """
    set_seed(plan.seed)
    config = plan.algorithm
    is_lora = isinstance(config, LoraFinetuningConfig)
    dtype = compute_dtype(plan, device) if is_lora else torch.float32
    base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    if isinstance(config, LoraFinetuningConfig):
        return _with_adapter(plan, config, base.to(device), adapter)
    if adapter is not None:
        base = merge_adapter(base, adapter)
    base.requires_grad_(True)
    if isinstance(config, QATFinetuningConfig):
        qat.prepare(base, config.quantizer_name, config.group_size)
    return base.to(device)


def _with_adapter(plan: Plan, config: LoraFinetuningConfig, base: Any, adapter: Path | None) -> Adapted:
    if config.quantize_base:
        log.info("int8 base: %s", quantize_base(base))
    name = _base_name(plan)
    model = (
        add_adapter(base, config, name) if adapter is None else continue_adapter(base, adapter, config, name)
    )
    if config.quantize_base:
        leave_to_each_worker(model)
    return model


def _base_name(plan: Plan) -> str:
    """For adapter_config.json: the hub's id, or the server's. A path would mean nothing elsewhere."""
    source = parse(plan.start.source)
    return str(plan.start.source) if isinstance(source, HubSource) else plan.start.model_id


def whole_state(trainer: Trainer) -> dict[str, torch.Tensor] | None:
    """The weights that the workers hold shards of, on the first of them; None where each holds them all.

    Every worker has to call this, since each gives its shards.
    """
    if not trainer.is_fsdp_enabled:
        return None
    model: Any = trainer.model
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(model, options=options)
    return state


def save(plan: Plan, model: Any, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """Write what is served: an adapter, or a whole model, as safetensors; and the tokenizer's files.

    `state` is what `whole_state` gave.

    A whole model is written in the dtype that the plan computes in; one trained for quantisation in float32,
    with its weights on the int4 grid and QAT_FILE beside them.
    """
    if isinstance(model, Adapted):
        base: Any = model.get_base_model()
        _copy_tokenizer(Path(base.name_or_path), folder)
        model.save_pretrained(str(folder), **({} if state is None else {"state_dict": state}))
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's, which says nothing
        return
    _copy_tokenizer(Path(model.name_or_path), folder)
    state = model.state_dict() if state is None else state
    if isinstance(plan.algorithm, QATFinetuningConfig):
        model.save_pretrained(str(folder), state_dict=qat.rounded(model, state))
        _write_config(folder)
        (folder / QAT_FILE).write_text(json.dumps(qat.recipe(plan.algorithm), indent=2))
    else:
        _save_whole(model, state, compute_dtype(plan, model.device), folder)


def _save_whole(model: Any, state: dict[str, torch.Tensor], dtype: torch.dtype, folder: Path) -> None:
    # Of tied weights one is written: once converted they would be two.
    written = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
        if name not in model.all_tied_weights_keys
    }
    model.save_pretrained(str(folder), state_dict=written)
    _write_config(folder, dtype=str(dtype).removeprefix("torch."))


def _write_config(folder: Path, **values: Any) -> None:
    """Where the model as it was trained differs: the trainer turns the key-value cache off."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_cache": True} | values, indent=2))


def _copy_tokenizer(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in _TOKENIZER:
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)
