"""Slots give what transformers' `generate` gives, for many architectures, in any mixture of sequences."""

from __future__ import annotations

import asyncio
import copy
import random
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from stack.engine.base import Generation, Segment, Stop, Stopped
from stack.engine.batching.batcher import Batcher
from stack.engine.runners import slot_attention
from stack.engine.runners.slots import SlotRunner, Unservable, refuses
from stack.errors import StackError
from tests.engine.tiny import ATTENTION_ONLY, BASE, EXPERTS, VOCABULARY, generate, prompts, tiny_model
from tests.engine.toy import StopAt, toy_tokenizer


async def answer(batcher: Batcher, prompt: list[int], count: int, delay_s: float = 0.0) -> list[int]:
    await asyncio.sleep(delay_s)
    request = Generation(prompt, max_tokens=count)
    return [token async for output in batcher.generate(request) for token in output.token_ids]


@pytest.mark.parametrize("model_type", ATTENTION_ONLY)
async def test_mixed_arrivals_say_what_generate_says(model_type: str) -> None:
    model = tiny_model(model_type, ATTENTION_ONLY[model_type])
    asked = prompts(10)
    expected = [generate(model, prompt, 20) for prompt in asked]
    assert len({tuple(said) for said in expected}) > 5, "the model says the same to everything"
    batcher = Batcher(SlotRunner(model, 6, 128), toy_tokenizer(), end_tokens=(), prefill_budget=40)
    try:
        draw = random.Random(0)
        answers = await asyncio.gather(*(answer(batcher, p, 20, draw.random() * 0.05) for p in asked))
        assert answers == expected
        assert await answer(batcher, asked[3], 20) == expected[3]
    finally:
        batcher.close()


def test_lengths_far_apart_and_slots_far_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode steps in several groups, read in place and gathered."""
    monkeypatch.setattr(slot_attention, "SHORT", 8)
    model = tiny_model("qwen3", BASE)
    reference = copy.deepcopy(model)
    runner = SlotRunner(model, 32, 256)
    sequences = dict(zip((0, 1, 2, 30, 31, 9), prompts(6, 200, seed=2), strict=True))
    runner.forward([Segment(slot, 0, tokens) for slot, tokens in sequences.items()])
    for _ in range(5):
        for tokens in sequences.values():
            tokens.append(random.Random(len(tokens)).randrange(VOCABULARY))
        logits = runner.forward(
            [Segment(slot, len(tokens) - 1, tokens[-1:]) for slot, tokens in sequences.items()]
        )
        for row, tokens in zip(logits, sequences.values(), strict=True):
            torch.testing.assert_close(
                row, reference(torch.tensor([tokens])).logits[0, -1], atol=1e-4, rtol=0
            )


def test_going_back_and_copying() -> None:
    model = tiny_model("gpt_neox", BASE)
    reference = copy.deepcopy(model)
    runner = SlotRunner(model, 3, 64)
    one, two = [5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 20, 21, 22]
    runner.forward([Segment(0, 0, one)])
    runner.copy_prefix(0, 2, 4)
    logits = runner.forward([Segment(2, 4, two[4:]), Segment(0, 2, [30])])
    torch.testing.assert_close(logits[0], reference(torch.tensor([two])).logits[0, -1], atol=1e-4, rtol=0)
    other = torch.tensor([[*one[:2], 30]])
    torch.testing.assert_close(logits[1], reference(other).logits[0, -1], atol=1e-4, rtol=0)


def test_a_pass_that_was_stopped_can_be_run_again() -> None:
    model = tiny_model("qwen3", BASE)
    reference = copy.deepcopy(model)
    runner = SlotRunner(model, 3, 64)
    runner.forward([Segment(0, 0, [5, 6, 7])])
    segments = [Segment(0, 3, [8]), Segment(1, 0, [9, 10, 11])]
    with pytest.raises(Stopped):
        runner.forward(segments, StopAt(layer=1))
    for row, tokens in zip(runner.forward(segments, Stop()), ([5, 6, 7, 8], [9, 10, 11]), strict=True):
        torch.testing.assert_close(row, reference(torch.tensor([tokens])).logits[0, -1], atol=1e-4, rtol=0)


def test_only_wanted_logits() -> None:
    runner = SlotRunner(tiny_model("gpt2", ATTENTION_ONLY["gpt2"]), 3, 64)
    segments = [Segment(0, 0, [1, 2, 3], wants_logits=False), Segment(1, 0, [4]), Segment(2, 0, [5, 6])]
    together = runner.forward(segments)
    assert together.shape == (2, VOCABULARY)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together[1], runner.forward([Segment(0, 0, [5, 6])])[0], atol=1e-5, rtol=0)
    assert runner.forward(segments[:1]).shape == (0, VOCABULARY)


def test_bfloat16_is_close() -> None:
    model = tiny_model("qwen2", BASE)
    reference = copy.deepcopy(model)
    runner = SlotRunner(model.bfloat16(), 4, 128)
    for prompt in prompts(4):
        logits = runner.forward([Segment(1, 0, prompt)])[0]
        expected = reference(torch.tensor([prompt])).logits[0, -1].detach()
        assert float((logits - expected).norm() / expected.norm()) < 0.05


@pytest.mark.parametrize("model_type", ["falcon", "bloom"])
def test_models_that_do_not_take_attention_functions_are_refused(model_type: str) -> None:
    settings = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if model_type == "bloom":
        settings = {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}
    with pytest.raises(Unservable):
        SlotRunner(tiny_model(model_type, settings), 2, 64)


def test_a_model_that_comes_out_different_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check at the start is what stands between an unknown architecture and wrong answers."""
    original = slot_attention.Scores.attend

    def without_softcap(self: slot_attention.Scores, *args: Any) -> torch.Tensor:
        self.softcap = None
        return original(self, *args)

    monkeypatch.setattr(slot_attention.Scores, "attend", without_softcap)
    with pytest.raises(Unservable, match="logits are off by"):
        SlotRunner(tiny_model("gemma2", ATTENTION_ONLY["gemma2"]), 2, 64)


@pytest.mark.parametrize(
    ("model_type", "settings", "context", "why"),
    [
        ("qwen2", {}, 8192, None),
        ("mistral", {"sliding_window": 4096}, 8192, None),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 64, "dynamic"),
        ("jamba", {}, 64, "type"),
        ("llama4_text", {}, 64, "chunked"),
        ("gemma3n_text", {}, 64, "share keys"),
        ("llava", {}, 64, "images"),
    ],
)
def test_what_a_config_shows(
    model_type: str, settings: dict[str, Any], context: int, why: str | None
) -> None:
    refusal = refuses(AutoConfig.for_model(model_type, **settings), context)
    assert (why in refusal) if refusal and why else (refusal is why)


async def test_numbers_that_overflow_harm_no_later_request() -> None:
    """One token makes everything after it NaN; the slot that it was in must serve others as before."""
    model = tiny_model("qwen2", BASE)
    expected = generate(model, [1, 2, 3], 12)
    with torch.no_grad():
        model.get_input_embeddings().weight[50] = torch.nan
    batcher = Batcher(SlotRunner(model, 2, 64), toy_tokenizer(), end_tokens=())
    try:
        for _ in range(2):
            outcomes = await asyncio.gather(
                answer(batcher, [1, 2, 3], 12),
                answer(batcher, [*range(1, 40), 50], 5),
                answer(batcher, [1, 2, 3], 12),
                return_exceptions=True,
            )
            assert outcomes[0] == outcomes[2] == expected
            assert isinstance(outcomes[1], StackError)
            assert "not a number" in str(outcomes[1])
    finally:
        batcher.close()


def test_experts_differ_by_sequence_not_by_batch() -> None:
    model = tiny_model("mixtral", BASE | EXPERTS | {"sliding_window": None}, seed=3)
    runner = SlotRunner(model, 4, 64)
    asked = prompts(4, seed=5)
    together = runner.forward([Segment(i, 0, prompt) for i, prompt in enumerate(asked)])
    for row, prompt in zip(together, asked, strict=True):
        torch.testing.assert_close(row, runner.forward([Segment(0, 0, prompt)])[0], atol=1e-4, rtol=0)
