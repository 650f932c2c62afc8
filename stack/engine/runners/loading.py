"""A folder of weights -> a transformers model; which dtype and device the machine computes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stack.engine import openmp
from stack.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_CONTEXT = 8192  # unless more is asked for: the cache of every slot can grow to it
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_config(folder: Path) -> Any:
    """The model's transformers config. Raises BadRequest for what no runner serves."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise BadRequest(
            f"{folder.name} has no config.json that transformers understands: {told(error, folder)}"
        ) from None
    if config.is_encoder_decoder:
        raise BadRequest(f"{folder.name} is an encoder-decoder model ({config.model_type}), not a causal one")
    return config


def load_model(folder: Path, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """The transformers model with its head, from safetensors only, ready for inference."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    auto = AutoModelForImageTextToText if is_multimodal(config) else AutoModelForCausalLM
    try:
        model: Any = auto.from_pretrained(
            folder, config=config, dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise BadRequest(f"{folder.name} cannot be loaded: {told(error, folder)}") from None
    return model.to(device).eval().requires_grad_(False)


def check_weights(folder: Path) -> None:
    """Raises BadRequest for a folder without weights that are safe to load."""
    if any(folder.glob("*.safetensors")):
        return
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl"))
    seen = f"; {others[0]} is not read, since pickles can run code" if others else ""
    raise BadRequest(f"{folder.name} has no *.safetensors{seen}")


def told(error: Exception, folder: Path) -> str:
    """A library's message without this machine's paths, and only its first line."""
    return str(error).replace(str(folder), folder.name).strip().split("\n")[0]


def is_multimodal(config: Any) -> bool:
    return getattr(config, "vision_config", None) is not None


def context_limit(config: Any, wanted: int | None) -> int:
    """How many tokens a sequence may have. Raises BadRequest when the model cannot take what is wanted."""
    text = config.get_text_config(decoder=True)
    own = getattr(text, "max_position_embeddings", None)
    if own is None:  # recurrent models have no limit of their own
        return wanted or DEFAULT_CONTEXT
    if wanted is not None and wanted > own:
        raise BadRequest(f"context_length is {wanted}, but the model was made for {own}; write {own} or less")
    return wanted or min(int(own), DEFAULT_CONTEXT)


def pick_device(device: str | None) -> torch.device:
    """CUDA when there is one, unless told. Raises BadRequest for a device that is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise BadRequest(f"device is {device!r}; write cpu, cuda or cuda:N") from None
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        raise BadRequest(
            f"device is {device!r}, but this machine has {torch.cuda.device_count()} CUDA devices"
        )
    return picked


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware computes it. Raises BadRequest for a dtype the machine lacks."""
    if dtype == "auto":
        return torch.bfloat16 if computes_bfloat16(device) else torch.float32
    if dtype not in DTYPES:
        raise BadRequest(f"dtype is {dtype!r}; write auto, {', '.join(DTYPES)}")
    if dtype == "bfloat16" and not computes_bfloat16(device):
        raise BadRequest(f"dtype is bfloat16, but {_name(device)} does not compute it; write float32 or auto")
    if dtype == "float16" and device.type == "cpu":
        raise BadRequest("dtype is float16, which CPUs compute too slowly; write auto, bfloat16 or float32")
    return DTYPES[dtype]


def computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and openmp.computes_bfloat16()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine's CPU"
