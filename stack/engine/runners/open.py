"""Which Runner serves a model: the lean Llama one, slots over transformers, or a cache per sequence."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from stack.engine.runners.llama import LlamaRunner
from stack.engine.runners.loading import check_weights, context_limit, load_config, pick_device, pick_dtype
from stack.engine.runners.sequences import SequenceRunner
from stack.engine.runners.slots import SlotRunner, Unservable

if TYPE_CHECKING:
    from stack.engine.base import Runner

log = logging.getLogger(__name__)


def open_runner(
    folder: Path,
    *,
    dtype: str = "auto",
    context_length: int | None = None,
    slots: int = 32,
    threads: int = 1,
    device: str | None = None,
) -> Runner:
    """Load a folder of safetensors, config and tokenizer.

    Raises BadRequest, with what to write instead, for a model, dtype, context or device that cannot be had.
    """
    config = load_config(folder)
    check_weights(folder)
    picked_device = pick_device(device)
    picked_dtype = pick_dtype(dtype, picked_device)
    context = context_limit(config, context_length)
    torch.set_num_threads(threads)
    if LlamaRunner.supports(config):
        return LlamaRunner.open(folder, picked_dtype, context, slots, threads, picked_device)
    try:
        return SlotRunner.open(folder, config, picked_dtype, context, slots, picked_device)
    except Unservable as why:
        log.warning("%s is served one sequence at a time: %s", folder.name, why)
    return SequenceRunner.open(folder, config, picked_dtype, context, slots, picked_device)
