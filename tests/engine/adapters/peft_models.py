"""Adapters that PEFT makes of tiny models, and what PEFT computes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from stack.engine.adapters.weights import read_adapter
from stack.engine.base import Runner, Segment


def save_adapter(model: Any, folder: Path, seed: int, **config: Any) -> Path:
    """A LoRA adapter of `model` with random matrices, which is unchanged afterwards."""
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
            elif "magnitude" in name:
                parameter.mul_(torch.empty_like(parameter).uniform_(0.5, 2.0))
    adapted.save_pretrained(folder)
    adapted.unload()
    return folder


def peft_logits(model: Any, folder: Path | None, tokens: list[int]) -> Tensor:
    """float32 [tokens, vocabulary], computed by PEFT, or by transformers without an adapter."""
    with torch.no_grad():
        if folder is None:
            return model(torch.tensor([tokens])).logits[0].float()  # type: ignore[no-any-return]
        adapted = PeftModel.from_pretrained(model, folder)
        logits: Tensor = adapted(torch.tensor([tokens])).logits[0].float()
        adapted.unload()
        return logits


def add(runner: Runner, key: str, folder: Path) -> None:
    assert runner.adapters is not None
    runner.adapters.add(key, runner.adapters.prepare(read_adapter(folder)))


def check_mixed(
    runner: Runner,
    model: Any,
    folders: dict[str | None, Path | None],
    limit: float,
    vocabulary: int,
    in_parts: bool = True,
) -> None:
    """Prompts in parts and steps, of all adapters and the base, in mixed passes: as PEFT's one by one.

    `limit` is relative to the largest logit. The adapters are added as they come.
    """
    keys = [*folders]
    texts = {slot: _tokens(30 + 7 * slot, slot, vocabulary) for slot in range(len(keys))}
    exact = {slot: peft_logits(model, folders[key], texts[slot]) for slot, key in enumerate(keys)}
    plain = peft_logits(model, None, texts[1])
    assert (plain - exact[1]).abs().max() > 0.1 * plain.abs().max(), "the adapter changes what is said"
    for key, folder in folders.items():
        if key is not None and folder is not None:
            add(runner, key, folder)
    done = dict.fromkeys(texts, 0)
    for turn in range(5):
        longer = {slot: turn < 3 and not (slot + turn) % 2 if in_parts else not turn for slot in texts}
        cut = {slot: 9 if longer[slot] else 1 for slot in texts}
        segments = [
            Segment(slot, done[slot], texts[slot][done[slot] : done[slot] + count], adapter=keys[slot])
            for slot, count in cut.items()
            if done[slot] < len(texts[slot]) and (turn != 2 or slot != 1)
        ]
        logits = runner.forward(segments)
        for segment, row in zip(segments, logits, strict=True):
            done[segment.slot] += len(segment.tokens)
            wanted = exact[segment.slot][done[segment.slot] - 1]
            off = (row - wanted).abs().max() / wanted.abs().max()
            assert off < limit, (keys[segment.slot], turn, float(off))


def _tokens(count: int, seed: int, vocabulary: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [int(token) for token in torch.randint(2, vocabulary, (count,), generator=generator)]
