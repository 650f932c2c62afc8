"""SmolLM2 through the batcher says what transformers' `generate` says: alone, and in a full mixed batch."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from stack.engine.base import Generation, Output, Runner, Sampling, Segment
from stack.engine.batching.batcher import Batcher
from stack.engine.runners.llama import LlamaRunner
from stack.engine.runners.loading import computes_bfloat16
from stack.engine.runners.slots import SlotRunner

CPU = torch.device("cpu")
TOKENS = 12
# bfloat16 has 8 significant bits: logits of 16 to 32 are multiples of 1/8. Seen: at most 0.14.
NEAR_TIE = 0.3

Open = Callable[[torch.dtype], Runner]


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2_dir)


@pytest.fixture(scope="module")
def reference(smollm2_dir: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def asked(tokenizer: Any) -> list[list[int]]:
    """Chats of very different lengths; some share a system prompt, one goes on with another."""
    system = "You are a patient teacher who explains everything with an example from daily life. " * 3
    topics = ["rain", "the moon and its phases", "bread", "trains", "why the sky is blue", "ants", "tides"]
    chats = [
        [
            *([{"role": "system", "content": system}] if i % 2 else []),
            {"role": "user", "content": f"Tell me about {topic}. " * (1 + 3 * (i % 3))},
        ]
        for i, topic in enumerate(topics)
    ]
    chats.append(
        [*chats[1], {"role": "assistant", "content": "Gladly."}, {"role": "user", "content": "Go on."}]
    )
    return [
        [int(token) for token in tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]]
        for chat in chats
    ]


@pytest.fixture(scope="module")
def expected(reference: Any, asked: list[list[int]]) -> list[list[int]]:
    answers = []
    for prompt in asked:
        out = reference.generate(
            torch.tensor([prompt]), do_sample=False, min_new_tokens=TOKENS, max_new_tokens=TOKENS
        )
        answers.append([int(token) for token in out[0, len(prompt) :]])
    return answers


@pytest.fixture(params=["llama", "slots"])
def open_smollm2(request: pytest.FixtureRequest, smollm2_dir: Path) -> Iterator[Open]:
    config = AutoConfig.from_pretrained(smollm2_dir)
    threads = torch.get_num_threads()

    def open_it(dtype: torch.dtype) -> Runner:
        if request.param == "llama":
            return LlamaRunner.open(smollm2_dir, dtype, 1024, 6, threads)
        return SlotRunner.open(smollm2_dir, config, dtype, 1024, 6, CPU)

    yield open_it
    torch.set_num_threads(threads)


class WithoutEnd:
    """A Constraint that allows everything but the end token, as min_new_tokens does."""

    complete = False

    def fill_mask(self, mask: torch.Tensor) -> None:
        mask.fill_(-1)
        mask[0] = ~(1 << 2)

    def accept(self, token_id: int) -> None: ...


async def answer(batcher: Batcher, generation: Generation, delay_s: float = 0.0) -> Output:
    await asyncio.sleep(delay_s)
    whole = Output()
    async for output in batcher.generate(generation):
        whole.text += output.text
        whole.token_ids += output.token_ids
    return whole


def request(prompt: list[int], **options: Any) -> Generation:
    return Generation(prompt, max_tokens=TOKENS, constraint=WithoutEnd(), **options)


async def test_float32_alone_and_in_a_full_batch_equal_generate(
    open_smollm2: Open, tokenizer: Any, asked: list[list[int]], expected: list[list[int]]
) -> None:
    batcher = Batcher(open_smollm2(torch.float32), tokenizer, end_tokens=[2], prefill_budget=100)
    try:
        alone = [await answer(batcher, request(asked[i])) for i in (0, 1)]
        assert [output.token_ids for output in alone] == expected[:2]
        draw = random.Random(0)
        order = [*range(len(asked)), 1, 3]
        together = asyncio.gather(*(answer(batcher, request(asked[i]), draw.random() * 0.5) for i in order))
        noise = asyncio.gather(
            *(answer(batcher, request(asked[i], sampling=Sampling(temperature=1.0))) for i in range(4))
        )
        outputs = await together
        await noise
    finally:
        batcher.close()
    assert [output.token_ids for output in outputs] == [expected[i] for i in order]
    assert [output.text for output in outputs] == [
        tokenizer.decode(expected[i], skip_special_tokens=True) for i in order
    ]


@pytest.mark.skipif(not computes_bfloat16(CPU), reason="this CPU does not compute bfloat16")
async def test_bfloat16_parts_only_at_near_ties(
    open_smollm2: Open, tokenizer: Any, reference: Any, asked: list[list[int]], expected: list[list[int]]
) -> None:
    """Where an answer leaves float32's, float32 itself has both tokens within NEAR_TIE of each other."""
    batcher = Batcher(open_smollm2(torch.bfloat16), tokenizer, end_tokens=[2])
    try:
        outputs = await asyncio.gather(*(answer(batcher, request(prompt)) for prompt in asked))
    finally:
        batcher.close()
    same = 0
    for prompt, output, wanted in zip(asked, outputs, expected, strict=True):
        parts = [i for i, (a, b) in enumerate(zip(output.token_ids, wanted, strict=True)) if a != b]
        if not parts:
            same += 1
            continue
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + wanted[: parts[0]]])).logits[0, -1]
        gap = float(logits[wanted[parts[0]]] - logits[output.token_ids[parts[0]]])
        assert 0 <= gap < NEAR_TIE
    assert same >= 1


@pytest.mark.skipif(not computes_bfloat16(CPU), reason="this CPU does not compute bfloat16")
def test_bfloat16_logits_are_close(open_smollm2: Open, reference: Any, asked: list[list[int]]) -> None:
    runner = open_smollm2(torch.bfloat16)
    logits = runner.forward([Segment(i, 0, prompt) for i, prompt in enumerate(asked[:6])])
    for row, prompt in zip(logits, asked, strict=False):
        with torch.inference_mode():
            wanted = reference(torch.tensor([prompt])).logits[0, -1]
        assert float((row - wanted).norm() / (wanted - wanted.mean()).norm()) < 0.05
