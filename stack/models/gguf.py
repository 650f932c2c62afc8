"""GGUF files: reading their metadata, and converting them once to a transformers folder of safetensors.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import logging
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from stack.errors import BadRequest
from stack.models.cache import Progress

logger = logging.getLogger(__name__)

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# `tokenizer.ggml.pre` values whose digits are split one by one before the GPT-2 pattern (llama.cpp,
# llama-vocab.cpp). transformers reads them as plain GPT-2, which splits "x  5" elsewhere than in training.
_DIGITS_APART = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})


def read_metadata(path: Path) -> dict[str, Any]:
    """A GGUF file's key-value pairs; an array is given by its length, so big vocabularies cost little."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            magic, version, _, pairs = struct.unpack_from("<4sIQQ", data, 0)
            if magic != b"GGUF" or version not in (2, 3):
                raise BadRequest(f"{path.name} is not a GGUF file of version 2 or 3")
            metadata: dict[str, Any] = {}
            position = 24
            for _ in range(pairs):
                key, position = _string(data, position)
                (kind,) = struct.unpack_from("<I", data, position)
                metadata[key], position = _value(data, position + 4, kind)
            return metadata
    except (struct.error, ValueError, KeyError, IndexError, RecursionError) as error:  # mmap's too
        raise BadRequest(f"{path.name} is not a whole GGUF file") from error


def _string(data: mmap.mmap, position: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, position)
    end = position + 8 + length
    if end > len(data):
        raise IndexError("a string runs past the end")
    return data[position + 8 : end].decode("utf-8", "replace"), end


def _value(data: mmap.mmap, position: int, kind: int) -> tuple[Any, int]:
    if kind == _STRING:
        return _string(data, position)
    if kind == _ARRAY:
        element, length = struct.unpack_from("<IQ", data, position)
        return length, _skip(data, position + 12, element, length)
    form = "<" + _SCALARS[kind]
    return struct.unpack_from(form, data, position)[0], position + struct.calcsize(form)


def _skip(data: mmap.mmap, position: int, element: int, length: int) -> int:
    if element in _SCALARS:
        return position + length * struct.calcsize(_SCALARS[element])
    for _ in range(length):
        if element == _STRING:
            position += 8 + struct.unpack_from("<Q", data, position)[0]
        else:
            _, position = _value(data, position, element)
    return position


def convert(path: Path, target: Path, progress: Progress) -> dict[str, Any]:
    """Write the model in `path` to `target` as safetensors, config and tokenizer; returns what to record.

    Quantised weights become bfloat16: the rounding is far below what their quantisation already lost.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    metadata = read_metadata(path)
    size = path.stat().st_size
    progress(0, size, f"converting {path.name}")
    folder, name = str(path.parent), path.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    _repair_tokenizer(tokenizer, metadata)
    dtype = {0: torch.float32, 1: torch.float16}.get(metadata.get("general.file_type", -1), torch.bfloat16)
    with _without_bars():
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=dtype
        )
    progress(size // 2, size, f"converting {path.name}")
    model.generation_config.eos_token_id = _end_tokens(metadata) or model.generation_config.eos_token_id
    with _without_bars():
        model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    progress(size, size, f"converting {path.name}")
    return {
        "gguf": name,
        "architecture": metadata["general.architecture"],
        "dtype": str(dtype).removeprefix("torch."),
    }


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers draws several; `progress` tells the caller."""
    from tqdm.auto import tqdm
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging as transformers_logging

    # Private, and gone when GGUF loading moves on: then a bar is drawn.
    loader: Any = modeling_gguf_pytorch_utils
    bars: Any = transformers_logging
    loader.tqdm = partial(tqdm, disable=True)
    bars.disable_progress_bar()
    try:
        yield
    finally:
        loader.tqdm = tqdm
        bars.enable_progress_bar()


def _end_tokens(metadata: dict[str, Any]) -> list[int]:
    """Ids that end an answer: of text, of a turn, of a message that calls a tool."""
    keys = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
    return sorted({metadata[key] for key in keys if key in metadata})


def _repair_tokenizer(tokenizer: Any, metadata: dict[str, Any]) -> None:
    from tokenizers import pre_tokenizers

    if metadata.get("tokenizer.ggml.pre") in _DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    context_length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if isinstance(context_length, int):
        tokenizer.model_max_length = context_length
    # Where the file was found is of no use later, and differs from run to run.
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
