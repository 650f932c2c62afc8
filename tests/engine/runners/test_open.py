"""Which runner serves what, and the errors for what cannot be served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stack.engine import openmp
from stack.engine.base import Segment
from stack.engine.runners import loading
from stack.engine.runners.llama import LlamaRunner
from stack.engine.runners.open import open_runner
from stack.engine.runners.sequences import SequenceRunner
from stack.engine.runners.slots import SlotRunner
from stack.errors import BadRequest
from tests.engine.tiny import ATTENTION_ONLY, BASE, VOCABULARY, tiny_model

UNLIMITED = {name: value for name, value in BASE.items() if name != "max_position_embeddings"}
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("model_type", "settings", "runner"),
    [
        ("llama", BASE, LlamaRunner),
        ("gpt_neox", BASE, SlotRunner),
        ("gemma2", ATTENTION_ONLY["gemma2"], SlotRunner),
        ("mamba", UNLIMITED | {"state_size": 8}, SequenceRunner),
        ("bloom", UNLIMITED | {"n_layer": 2, "n_head": 4}, SequenceRunner),
    ],
)
def test_every_model_gets_the_fastest_runner_that_is_exact(
    tmp_path: Path, model_type: str, settings: dict[str, object], runner: type
) -> None:
    model = tiny_model(model_type, settings)
    model.save_pretrained(tmp_path)
    opened = open_runner(tmp_path, dtype="float32", slots=3)
    assert type(opened) is runner
    assert (opened.slots, opened.vocab_size) == (3, VOCABULARY)
    assert opened.context_length == (8192 if model_type in ("mamba", "bloom") else 256)
    tokens = [5, 9, 33, 2]
    expected = model(torch.tensor([tokens])).logits[0, -1].detach()
    torch.testing.assert_close(opened.forward([Segment(1, 0, tokens)])[0], expected, atol=1e-4, rtol=0)


def test_context_length(tmp_path: Path) -> None:
    tiny_model("gpt2", ATTENTION_ONLY["gpt2"]).save_pretrained(tmp_path)
    assert open_runner(tmp_path, context_length=64, slots=1).context_length == 64
    with pytest.raises(BadRequest, match="context_length is 300, but the model was made for 256"):
        open_runner(tmp_path, context_length=300, slots=1)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=f"{tmp_path.name} has no config.json") as error:
        open_runner(tmp_path)
    assert str(tmp_path) not in str(error.value)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    with pytest.raises(BadRequest, match="no_such_model"):
        open_runner(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(BadRequest, match="encoder-decoder"):
        open_runner(tmp_path)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_weights_that_are_pickles_or_missing_are_refused(tmp_path: Path, model_type: str) -> None:
    model = tiny_model(model_type, ATTENTION_ONLY[model_type])
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(BadRequest, match=r"no \*\.safetensors; pytorch_model.bin is not read"):
        open_runner(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(BadRequest, match=r"no \*\.safetensors$"):
        open_runner(tmp_path)


def test_dtypes_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, computes in (({"avx2"}, False), ({"avx512_bf16"}, True), ({"amx_bf16"}, True)):
        monkeypatch.setattr(openmp, "_cpu_flags", lambda flags=flags: frozenset(flags))
        assert loading.pick_dtype("auto", CPU) is (torch.bfloat16 if computes else torch.float32)
        if computes:
            assert loading.pick_dtype("bfloat16", CPU) is torch.bfloat16
        else:
            with pytest.raises(BadRequest, match="does not compute it; write float32"):
                loading.pick_dtype("bfloat16", CPU)
    assert loading.pick_dtype("float32", CPU) is torch.float32
    with pytest.raises(BadRequest, match="float16"):
        loading.pick_dtype("float16", CPU)
    with pytest.raises(BadRequest, match="'int4'; write auto, float32"):
        loading.pick_dtype("int4", CPU)


def test_devices() -> None:
    assert loading.pick_device("cpu") == CPU
    assert loading.pick_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(BadRequest, match="'gpu'; write cpu"):
        loading.pick_device("gpu")
    with pytest.raises(BadRequest, match="CUDA devices"):
        loading.pick_device("cuda:99")
