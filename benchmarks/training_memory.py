"""What training an adapter on a model holds: bytes of weights, and of what waits for the backward pass.

    python benchmarks/training_memory.py ~/models/SmolLM2-135M-Instruct
    python benchmarks/training_memory.py ~/models/SmolLM2-135M-Instruct --tokens 512 --batch 4

Counted, not sampled: the same on every machine. The optimiser and the output head's logits are not in it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from stack.schemas.post_training import LoraFinetuningConfig
from stack.training.lora import add_adapter
from stack.training.quantized_base import quantize_base

LORA = LoraFinetuningConfig(
    lora_attn_modules=["q_proj", "v_proj"],
    apply_lora_to_mlp=True,
    apply_lora_to_output=False,
    rank=4,
    alpha=8,
)


def tensors(parameter: Any) -> list[torch.Tensor]:
    """torchao's weights are two."""
    return [parameter.qdata, parameter.scale] if hasattr(parameter, "qdata") else [parameter]


def measure(folder: Path, ids: torch.Tensor, int8: bool, checkpointing: bool) -> tuple[float, float]:
    """MB of weights, and MB of other tensors that a forward pass keeps."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if int8:
        quantize_base(base)
    model = add_adapter(base, LORA, "base").train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    weights = {t.data_ptr(): t.nbytes for p in model.parameters() for t in tensors(p)}
    kept: dict[int, int] = {}

    def note(tensor: Any) -> Any:
        for part in tensors(tensor):
            storage = part.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = model.get_base_model().base_model(ids).last_hidden_state
    hidden.square().mean().backward()  # that what is kept suffices
    return sum(weights.values()) / 1e6, sum(kept.values()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a transformers folder")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(0)
    print("| base | activation checkpointing | weights, MB | kept, MB |\n| --- | --- | --- | --- |")
    for int8 in (False, True):
        for checkpointing in (False, True):
            ids = torch.randint(3, 1000, (args.batch, args.tokens))
            weights, kept = measure(args.model, ids, int8, checkpointing)
            base = "int8" if int8 else "float32"
            print(f"| {base} | {'yes' if checkpointing else 'no'} | {weights:.0f} | {kept:.0f} |")


if __name__ == "__main__":
    main()
