"""The C kernels beside PyTorch: same layers, same cache, other code."""

from __future__ import annotations

import ctypes
import platform
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stack.engine.adapters.weights import Lora
from stack.engine.base import Segment, Stop, Stopped
from stack.engine.runners.kernels import build, native
from stack.engine.runners.kernels.native import MAX_ROWS, NativeLlama
from stack.engine.runners.llama_eager import EagerLlama
from stack.engine.runners.llama_weights import LlamaShape, Weights
from stack.settings import get_settings

TARGETS = {"this CPU": None, "AVX2": "-march=x86-64-v3", "baseline": "-march=x86-64"}
x86 = platform.machine() == "x86_64"


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The kernels compiled for this CPU and for older ones."""
    if not any(map(shutil.which, build.COMPILERS)):
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("kernels")
    return {name: build.compiled(folder, target) for name, target in TARGETS.items() if x86 or not target}


@pytest.fixture(params=TARGETS)
def kernels(
    request: pytest.FixtureRequest, libraries: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> ctypes.CDLL:
    if request.param not in libraries:
        pytest.skip("another architecture")
    library = ctypes.CDLL(str(libraries[request.param]))
    monkeypatch.setattr(native, "library", lambda: library)
    return library


class Tensors(dict[str, Tensor]):
    """In the place of an open file."""

    get_tensor = dict.__getitem__


def model(
    heads: int = 3, kv_heads: int = 1, head_dim: int = 64, hidden: int = 96, intermediate: int = 160,
    vocab_size: int = 301, layers: int = 2, biases: str = "", norms: bool = False, tied: bool = True,
) -> tuple[LlamaShape, Tensors]:  # fmt: skip
    """A random model whose activations are of order 1. `biases` names the projections that have one."""
    torch.manual_seed(heads * head_dim + hidden)
    inv_freq = 1.0 / 10_000 ** (torch.arange(0, head_dim, 2) / head_dim)
    shape = LlamaShape(
        hidden, intermediate, layers, heads, kv_heads, head_dim, vocab_size, 4096, 1e-5, tied, inv_freq, 1.0
    )
    tensors = Tensors({"model.embed_tokens.weight": torch.randn(vocab_size, hidden)})
    tensors["model.norm.weight"] = 1 + 0.1 * torch.randn(hidden)
    if not tied:
        tensors["lm_head.weight"] = torch.randn(vocab_size, hidden)
    sizes = {
        "self_attn.q_proj": (heads * head_dim, hidden),
        "self_attn.k_proj": (kv_heads * head_dim, hidden),
        "self_attn.v_proj": (kv_heads * head_dim, hidden),
        "self_attn.o_proj": (hidden, heads * head_dim),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = 1 + 0.1 * torch.randn(hidden)
        for name, (n, k) in sizes.items():
            tensors[f"{prefix}{name}.weight"] = torch.randn(n, k) / k**0.5
            if name[name.index(".") + 1] in biases:
                tensors[f"{prefix}{name}.bias"] = torch.randn(n)
        if norms:
            tensors[f"{prefix}self_attn.q_norm.weight"] = 1 + 0.1 * torch.randn(head_dim)
            tensors[f"{prefix}self_attn.k_norm.weight"] = 1 + 0.1 * torch.randn(head_dim)
    return shape, Tensors((name, tensor.bfloat16()) for name, tensor in tensors.items())


class Pair:
    """The same model in C and in float32 PyTorch."""

    def __init__(self, slots: int = 4, context: int = 256, threads: int = 2, **options: Any) -> None:
        shape, tensors = model(**options)
        files = dict.fromkeys(tensors, tensors)
        assert NativeLlama.fits(shape)
        weights = Weights(files, torch.float32)

        def weight(module: str) -> Tensor:
            name = "model.embed_tokens" if module == "lm_head" and shape.tied else module
            return weights[f"{name}.weight"]

        self.native = NativeLlama(shape, Weights(files, torch.bfloat16), slots, context, threads, weight)
        self.eager = EagerLlama(shape, weights, slots, context, torch.float32, torch.device("cpu"), weight)
        self.vocab_size = shape.vocab_size

    def add(self, key: str, lora: dict[str, Lora]) -> None:
        for bank in (self.native.adapters, self.eager.adapters):
            bank.add(key, bank.prepare(lora))

    def remove(self, key: str) -> None:
        for bank in (self.native.adapters, self.eager.adapters):
            bank.remove(key)

    def lora(self, rank: int, *names: str, dora: bool = False) -> dict[str, Lora]:
        """Random, for the linear layers whose names end so; of the size of the layers' own outputs."""
        made = {}
        for site in self.eager.adapters.sites:
            for part in site.parts:
                if part.name.endswith(names):
                    a = torch.randn(rank, site.inputs) / site.inputs**0.5
                    magnitude = 0.5 + 2 * torch.rand(part.outputs) if dora else None
                    made[part.name] = Lora(a, torch.randn(part.outputs, rank) / rank**0.5, magnitude)
        return made

    def tokens(self, count: int) -> list[int]:
        return torch.randint(0, self.vocab_size, (count,)).tolist()

    def check(self, segments: list[Segment]) -> Tensor:
        """Both agree to what bf16 activations allow; returns the logits of the C kernels."""
        ours, exact = self.native.forward(segments), self.eager.forward(segments)
        assert ours.shape == exact.shape
        assert ours.dtype == torch.float32
        # bf16 has 8 bits: errors of 2**-9 per rounded value, of random sign, over some layers.
        assert (ours - exact).abs().max() < 0.02 * exact.abs().max()
        assert (ours - exact).pow(2).mean().sqrt() < 0.01 * exact.pow(2).mean().sqrt()
        return ours


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"heads": 9, "kv_heads": 3, "hidden": 576, "intermediate": 1536, "layers": 1},  # SmolLM2-135M
        {"heads": 5, "kv_heads": 5, "hidden": 32, "intermediate": 48, "vocab_size": 17},
        {"heads": 8, "kv_heads": 1, "head_dim": 128, "biases": "qkv"},  # Qwen2
        {"heads": 4, "kv_heads": 2, "head_dim": 128, "norms": True, "tied": False},  # Qwen3
        {"heads": 14, "kv_heads": 2, "biases": "qkvogud", "tied": False, "vocab_size": 512},
        {"heads": 3, "kv_heads": 1, "head_dim": 96, "intermediate": 8224, "layers": 1},  # k in several parts
    ],
    ids=str,
)
def test_shapes(kernels: ctypes.CDLL, options: dict[str, Any]) -> None:
    pair = Pair(**options)
    pair.check([Segment(0, 0, pair.tokens(37))])  # a prompt
    pair.check([Segment(0, 37, pair.tokens(1))])  # one step
    pair.check(
        [
            Segment(1, 0, pair.tokens(50)),
            Segment(0, 38, pair.tokens(1)),
            Segment(3, 0, pair.tokens(7), wants_logits=False),
        ]
    )
    pair.check(
        [Segment(3, 7, pair.tokens(13)), Segment(0, 39, pair.tokens(1)), Segment(1, 50, pair.tokens(1))]
    )


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 11, 12, 13, 31, 48, 49, 100, 200])
def test_every_number_of_rows(kernels: ctypes.CDLL, count: int) -> None:
    pair = Pair(slots=2)
    pair.check([Segment(1, 0, pair.tokens(count))])
    many = Pair(slots=count, context=16)
    many.check([Segment(slot, 0, many.tokens(1)) for slot in range(count)])


@pytest.mark.parametrize("threads", [1, 3, 7])
def test_threads_share_the_work_in_any_number(kernels: ctypes.CDLL, threads: int) -> None:
    pair = Pair(threads=threads)
    for position in range(20):
        pair.check([Segment(slot, position, pair.tokens(1)) for slot in range(3)])


def test_long_context_in_several_passes(kernels: ctypes.CDLL) -> None:
    pair = Pair(context=2048, layers=1)
    length = 2 * MAX_ROWS + 100
    pair.check(
        [Segment(0, 0, pair.tokens(30)), Segment(2, 0, pair.tokens(length)), Segment(1, 0, pair.tokens(3))]
    )
    pair.check([Segment(2, length, pair.tokens(1)), Segment(0, 30, pair.tokens(1))])


def test_a_row_does_not_depend_on_its_batch(kernels: ctypes.CDLL) -> None:
    pair = Pair(slots=32, layers=3)
    prompts = [pair.tokens(20 + 3 * slot) for slot in range(32)]
    steps = pair.tokens(32)
    forward = pair.native.forward
    together = forward([Segment(slot, 0, prompt) for slot, prompt in enumerate(prompts)])
    then = forward([Segment(slot, len(prompts[slot]), [steps[slot]]) for slot in range(32)])
    for slot in (0, 7, 31):
        prompt = prompts[slot]
        assert torch.equal(forward([Segment(5, 0, prompt)])[0], together[slot])
        assert torch.equal(forward([Segment(5, len(prompt), [steps[slot]])])[0], then[slot])
        forward([Segment(6, 0, prompt[:9], wants_logits=False)])  # nor on how its prompt is cut
        assert torch.equal(forward([Segment(6, 9, prompt[9:])])[0], together[slot])


def test_a_pass_that_was_stopped_can_be_run_again(kernels: ctypes.CDLL) -> None:
    """Stopped before its first layer, and from another thread somewhere on its way."""
    pair = Pair(context=2048, layers=12)
    texts = [pair.tokens(700), pair.tokens(40)]
    pair.check([Segment(slot, 0, text) for slot, text in enumerate(texts)])
    segments = [Segment(0, 700, pair.tokens(900)), Segment(1, 40, pair.tokens(1))]
    stop = Stop()
    expected = pair.native.forward(segments, stop).clone()

    def run_until_stopped() -> None:
        while True:
            assert torch.equal(pair.native.forward(segments, stop), expected)

    for delay in (0.0, 0.001, 0.01, 0.1):
        stop.set(not delay)
        timer = threading.Timer(delay, stop.set)
        timer.start()
        with pytest.raises(Stopped):
            run_until_stopped()
        timer.join()
        assert torch.equal(pair.native.forward(segments), expected)


def test_a_slot_forgets_what_was_longer(kernels: ctypes.CDLL) -> None:
    pair = Pair()
    pair.check([Segment(0, 0, pair.tokens(90))])
    pair.check([Segment(0, 0, pair.tokens(5))])
    pair.check([Segment(0, 5, pair.tokens(1))])


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 60])
def test_copy_prefix(kernels: ctypes.CDLL, tokens: int) -> None:
    pair = Pair()
    prompt, other, end = pair.tokens(60), pair.tokens(80), pair.tokens(4)
    pair.check([Segment(0, 0, prompt), Segment(2, 0, other)])
    for runner in (pair.native, pair.eager):
        runner.copy_prefix(0, 2, tokens)
    copied = pair.check([Segment(2, tokens, end)])
    assert torch.equal(copied, pair.native.forward([Segment(1, 0, prompt[:tokens] + end)]))
    pair.check([Segment(0, 60, end)])  # the source is as it was


def test_widths_that_are_not_whole_vectors_are_left_to_pytorch(kernels: ctypes.CDLL) -> None:
    assert not NativeLlama.fits(model(hidden=90)[0])
    assert not NativeLlama.fits(model(head_dim=20)[0])


def test_logits_that_are_held_stay_as_they_are(kernels: ctypes.CDLL) -> None:
    pair = Pair()
    held = pair.native.forward([Segment(0, 0, pair.tokens(9)), Segment(1, 0, pair.tokens(9))])[1]
    before = held.clone()
    second = pair.native.forward([Segment(2, 0, pair.tokens(9)), Segment(3, 0, pair.tokens(9))])
    assert torch.equal(held, before)
    address = second.data_ptr()
    del second
    assert (
        pair.native.forward([Segment(2, 9, pair.tokens(1))]).data_ptr() == address
    )  # else the memory is reused


def test_a_slot_gives_back_the_memory_of_a_long_text(kernels: ctypes.CDLL) -> None:
    pair = Pair(slots=3, context=1600, layers=24, kv_heads=3, hidden=32)
    text, other = pair.tokens(1500), pair.tokens(1500)
    pair.native.forward([Segment(0, 0, other)])
    before = resident()
    pair.native.forward([Segment(1, 0, text)])
    taken = resident() - before
    assert taken > 24 << 20  # 1500 positions of 2 * 24 * 3 * 64 bf16 are 28 MB
    pair.native.forward([Segment(1, 0, text[:20])])
    assert resident() - before < taken / 4
    expected = pair.native.forward([Segment(2, 0, text[:60])])
    assert torch.equal(pair.native.forward([Segment(1, 20, text[20:60])]), expected)  # what is below stays
    alone = pair.native.forward([Segment(2, 0, [*other, 5])])
    assert torch.equal(pair.native.forward([Segment(0, 1500, [5])]), alone)  # and so do the neighbours


def test_cache_takes_memory_only_where_it_is_written() -> None:
    before = resident()
    cache = native.zeros(1 << 29, huge=False)  # 1 GiB
    cache[:: 1 << 27] = 1
    assert resident() - before < 16 << 20


def resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def test_compiled_once(tmp_path: Path, libraries: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = libraries["this CPU"]
    monkeypatch.setenv("PATH", "")  # no compiler any more
    assert build.compiled(first.parent) == first
    with pytest.raises(FileNotFoundError, match="no C compiler"):
        build.compiled(tmp_path)


@pytest.mark.parametrize("broken", [{"STACK_KERNELS": "false"}, {"PATH": ""}, {"CC": "false"}])
def test_without_kernels_models_still_run(
    broken: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"STACK_HOME": str(tmp_path), **broken}.items():
        monkeypatch.setenv(name, value)
    for cached in (get_settings, build.library):
        cached.cache_clear()
    try:
        assert build.library() is None
        assert not NativeLlama.fits(model()[0])
    finally:
        get_settings.cache_clear()
        build.library.cache_clear()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"heads": 5, "kv_heads": 5, "hidden": 32, "intermediate": 48, "vocab_size": 17},
        {"heads": 14, "kv_heads": 2, "biases": "qkvogud", "tied": False, "vocab_size": 512},
    ],
    ids=repr,
)
def test_adapters(kernels: ctypes.CDLL, options: dict[str, Any]) -> None:
    pair = Pair(slots=6, **options)
    everything = ("_proj", "lm_head")
    pair.add("attention", pair.lora(8, "q_proj", "k_proj", "v_proj", "o_proj"))
    pair.add("mlp", pair.lora(3, "gate_proj", "down_proj"))
    pair.add("dora", pair.lora(5, *everything, dora=True))
    pair.add("head", pair.lora(20, "lm_head", "1.mlp.up_proj"))
    keys = ["attention", None, "dora", "mlp", "head", "dora"]
    prompts = [pair.tokens(count) for count in (30, 21, 3, 1, 60, 40)]
    pair.check([Segment(i, 0, prompt, adapter=keys[i]) for i, prompt in enumerate(prompts)])
    steps = [Segment(i, len(prompts[i]), pair.tokens(1), adapter=keys[i]) for i in range(6)]
    mixed = pair.check(steps)
    assert (pair.check([replace(step, adapter=None) for step in steps[:1]])[0] - mixed[0]).abs().max() > 0.5
    # What is left of those that went must not reach the base's rows, nor the next one's.
    pair.remove("mlp")
    pair.remove("dora")
    keys = ["attention", None, "head"]
    pair.check([Segment(i, 0, prompts[i], adapter=keys[i]) for i in range(3)])
    pair.add("next", pair.lora(2, "v_proj", "up_proj", "down_proj", "lm_head"))
    keys = [None, "next", "head", "attention", "next"]
    pair.check([Segment(i, 0, prompts[i], adapter=keys[i]) for i in range(5)])
    for key in ("attention", "head", "next"):
        pair.remove(key)
    pair.check([Segment(0, 0, prompts[0])])


def test_an_adapter_in_a_prompt_of_several_passes(kernels: ctypes.CDLL) -> None:
    pair = Pair(slots=2, context=2 * MAX_ROWS)
    pair.add("a", pair.lora(4, "_proj", "lm_head"))
    prompt = pair.tokens(MAX_ROWS + 90)
    pair.check([Segment(0, 0, pair.tokens(60)), Segment(1, 0, prompt, adapter="a")])
