"""The lean runner beside transformers: random models of every family it supports, and the real SmolLM2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from stack.engine.base import Segment, Stop, Stopped
from stack.engine.runners.kernels.native import NativeLlama
from stack.engine.runners.llama import LlamaRunner
from stack.engine.runners.llama_eager import EagerLlama, _zeros
from stack.errors import NotFound
from tests.engine.toy import StopAt

COMMON: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "initializer_range": 0.1, "pad_token_id": None, "eos_token_id": None,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "llama with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama 3": {"model_type": "llama", "rope_parameters": LLAMA3, "head_dim": 64},
    "llama, linear": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0},
    },
    "mistral": {"sliding_window": None, "num_key_value_heads": 4},
    "qwen2": {},
    "qwen3": {"head_dim": 64, "rope_parameters": YARN, "num_key_value_heads": 1},
}


def config_of(family: str, **changes: Any) -> PreTrainedConfig:
    options = {"model_type": family, **COMMON, **FAMILIES.get(family, {}), **changes}
    return AutoConfig.for_model(**options)


@pytest.fixture(scope="module", params=FAMILIES)
def random_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model, its norms and biases random too."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config_of(request.param))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.2)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder, max_shard_size="400KB")  # in shards
    return folder


def exact_logits(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """float32 [tokens, vocab]."""
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([tokens])).logits[0].float()
    return logits


def tokens_of(count: int, seed: int) -> list[int]:
    return torch.randint(0, 320, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_random_models_equal_transformers(random_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(random_model, dtype=torch.float32).eval()
    assert LlamaRunner.supports(model.config)
    runner = LlamaRunner.open(random_model, torch.float32, context_length=200, slots=4)
    assert isinstance(runner.model, EagerLlama)
    check(runner, model, limit=2e-5)


def test_kernels_are_closer_to_float32_than_transformers_in_bfloat16(random_model: Path) -> None:
    runner = LlamaRunner.open(random_model, torch.bfloat16, context_length=200, slots=4)
    if not isinstance(runner.model, NativeLlama):
        pytest.skip("needs a C compiler")
    # The same weights, rounded, computed exactly.
    model = AutoModelForCausalLM.from_pretrained(random_model, dtype=torch.bfloat16).float().eval()
    check(runner, model, limit=0.03)
    rounded = AutoModelForCausalLM.from_pretrained(random_model, dtype=torch.bfloat16).eval()
    prompt = tokens_of(64, seed=9)
    exact, ours = exact_logits(model, prompt)[-1], runner.forward([Segment(0, 0, prompt)])[0]
    assert (ours - exact).norm() < (exact_logits(rounded, prompt)[-1] - exact).norm()


def test_bfloat16_without_kernels(random_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativeLlama, "fits", staticmethod(lambda shape: False))
    runner = LlamaRunner.open(random_model, torch.bfloat16, context_length=200, slots=4)
    assert isinstance(runner.model, EagerLlama)
    model = AutoModelForCausalLM.from_pretrained(random_model, dtype=torch.bfloat16).float().eval()
    check(runner, model, limit=0.1)  # its activations are bfloat16 throughout, as transformers' are


def check(runner: LlamaRunner, model: PreTrainedModel, limit: float) -> None:
    """Prompts whole and in parts, steps alone and together, all in mixed passes; `limit` is relative."""
    texts = {slot: tokens_of(40 + 30 * slot, seed=slot) for slot in range(4)}
    exact = {slot: exact_logits(model, text) for slot, text in texts.items()}
    done = dict.fromkeys(texts, 0)
    for cut in ([40, 20, 0, 1], [0, 1, 77, 1], [0, 1, 1, 64], [0, 1, 1, 1], [0, 10, 1, 10]):
        segments = [
            Segment(slot, done[slot], texts[slot][done[slot] : done[slot] + count], wants_logits=slot != 3)
            for slot, count in enumerate(cut)
            if count
        ]
        logits = runner.forward(segments)
        for segment in segments:
            done[segment.slot] += len(segment.tokens)
        wanted = [exact[s.slot][done[s.slot] - 1] for s in segments if s.wants_logits]
        assert logits.shape == (len(wanted), runner.vocab_size)
        assert (logits - torch.stack(wanted)).abs().max() < limit * exact[0].abs().max()


def test_a_pass_that_was_stopped_can_be_run_again(random_model: Path) -> None:
    runner = LlamaRunner.open(random_model, torch.float32, context_length=200, slots=2)
    prompts = [tokens_of(60, seed=1), tokens_of(40, seed=2)]
    segments = [Segment(slot, 0, prompt) for slot, prompt in enumerate(prompts)]
    stop = StopAt(layer=2)
    with pytest.raises(Stopped):
        runner.forward(segments, stop)
    again = runner.forward(segments, Stop())
    other = LlamaRunner.open(random_model, torch.float32, context_length=200, slots=2)
    assert torch.equal(again, other.forward(segments))


def test_float32_prefix_copies(random_model: Path) -> None:
    runner = LlamaRunner.open(random_model, torch.float32, context_length=200, slots=3)
    prompt = tokens_of(90, seed=3)
    whole = runner.forward([Segment(0, 0, prompt)])
    runner.copy_prefix(0, 2, 70)
    torch.testing.assert_close(runner.forward([Segment(2, 70, prompt[70:])]), whole, atol=1e-4, rtol=1e-4)


def test_cache_grows(random_model: Path) -> None:
    """As on an accelerator, where memory is taken when it is asked for."""
    runner = LlamaRunner.open(random_model, torch.float32, context_length=200, slots=3)
    model = runner.model
    assert isinstance(model, EagerLlama)
    prompt = tokens_of(90, seed=3)
    whole = runner.forward([Segment(0, 0, prompt)])
    model._keys, model._values, model._positions = [], [], 0
    model._grow(16)
    for at in range(0, 90, 9):
        parts = runner.forward([Segment(0, at, prompt[at : at + 9]), Segment(2, at, prompt[at : at + 9])])
    assert model._positions == 128
    torch.testing.assert_close(parts, whole.expand(2, -1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        config_of("mistral", sliding_window=64),
        config_of("qwen2", use_sliding_window=True, max_window_layers=1),
        config_of("llama", hidden_act="gelu"),
        config_of("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        config_of("llama", quantization_config={"quant_method": "fp8"}),
        AutoConfig.for_model("gpt2"),
        AutoConfig.for_model("gemma2"),
    ],
    ids=lambda config: config.model_type,
)
def test_what_it_does_not_compute_exactly_is_not_supported(config: PreTrainedConfig) -> None:
    assert not LlamaRunner.supports(config)


def test_what_lies_outside_is_refused(random_model: Path) -> None:
    runner = LlamaRunner.open(random_model, torch.bfloat16, context_length=32, slots=2)
    for segment, message in [
        (Segment(2, 0, [1]), "slot 2"),
        (Segment(-1, 0, [1]), "slot -1"),
        (Segment(0, 32, [1]), "context of 32"),
        (Segment(0, 30, [1, 2, 3]), "context of 32"),
        (Segment(0, -1, [1]), "context of 32"),
        (Segment(0, 0, []), "context of 32"),
        (Segment(0, 0, [320]), "vocabulary of 320"),
        (Segment(0, 0, [-1]), "vocabulary of 320"),
    ]:
        with pytest.raises(ValueError, match=message):
            runner.forward([segment])


def test_missing_weights_are_named(random_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((random_model / "config.json").read_text())
    with pytest.raises(NotFound, match=r"model.safetensors"):
        LlamaRunner.open(tmp_path, torch.float32, 32, 1)


class TestSmolLM2:
    """Greedy text of the real model."""

    PROMPTS = (
        "The capital of France is",
        "Here is how to bake bread. First,",
        "def fibonacci(n):",
        "In 1969, two men walked on the moon and",
    )

    @pytest.fixture
    def prompts(self, smollm2_dir: Path) -> list[list[int]]:
        tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
        return [tokenizer(prompt)["input_ids"] for prompt in self.PROMPTS]

    def test_float32_equals_generate_alone_and_in_a_batch(
        self, smollm2_dir: Path, prompts: list[list[int]]
    ) -> None:
        model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32).eval()
        expected = [
            model.generate(torch.tensor([prompt]), max_new_tokens=16, min_new_tokens=16, do_sample=False)[0]
            .tolist()[len(prompt) :]
            for prompt in prompts
        ]  # fmt: skip
        del model
        runner = LlamaRunner.open(smollm2_dir, torch.float32, context_length=128, slots=8)
        # min_new_tokens forbids the end token (2) to generate, so it is forbidden here too.
        assert greedy(runner, dict(enumerate(prompts)), 16, forbidden=2) == expected
        for slot, prompt in list(enumerate(prompts))[:2]:
            assert greedy(runner, {7 - slot: prompt}, 16, forbidden=2) == [expected[slot]]

    def test_bfloat16_parts_from_float32_only_at_near_ties(
        self, smollm2_dir: Path, prompts: list[list[int]]
    ) -> None:
        exact = LlamaRunner.open(smollm2_dir, torch.float32, context_length=128, slots=4)
        runner = LlamaRunner.open(smollm2_dir, torch.bfloat16, context_length=128, slots=4)
        segments = [Segment(slot, 0, prompt) for slot, prompt in enumerate(prompts)]
        for _ in range(24):
            theirs, ours = exact.forward(segments), runner.forward(segments)
            assert (ours - theirs).abs().max() < 0.75  # logits are of order 10; transformers' bf16: 0.8
            best = theirs.argmax(-1, keepdim=True)
            assert (theirs.gather(1, best) - theirs.gather(1, ours.argmax(-1, keepdim=True))).max() < 0.25
            segments = [
                Segment(segment.slot, segment.start + len(segment.tokens), token)
                for segment, token in zip(segments, best.tolist(), strict=True)
            ]


def greedy(
    runner: LlamaRunner, prompts: dict[int, list[int]], count: int, forbidden: int | None = None
) -> list[list[int]]:
    """Greedy continuations of prompts by slot."""
    segments = [Segment(slot, 0, prompt) for slot, prompt in prompts.items()]
    outputs: list[list[int]] = [[] for _ in prompts]
    for _ in range(count):
        logits = runner.forward(segments)
        if forbidden is not None:
            logits[:, forbidden] = -torch.inf
        for output, token in zip(outputs, logits.argmax(-1).tolist(), strict=True):
            output.append(token)
        segments = [
            Segment(segment.slot, segment.start + len(segment.tokens), [output[-1]])
            for segment, output in zip(segments, outputs, strict=True)
        ]
    return outputs


def test_an_empty_cache_takes_no_memory() -> None:
    """Gigabytes for a small model in float32, of which a short chat needs a thousandth."""
    before = psutil.Process().memory_info().rss
    cache = _zeros((32, 3, 8192, 64), torch.float32, torch.device("cpu"))
    assert cache.shape == (32, 3, 8192, 64)
    assert not cache[:, :, 5000].any()
    cache[:, :, :3] = 1
    assert psutil.Process().memory_info().rss - before < 20 << 20
