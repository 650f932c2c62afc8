"""What is loaded to be trained, and what is saved to be served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from stack.errors import BadRequest
from stack.training.model import load, save
from tests.training.plans import lora, make_plan

CPU = torch.device("cpu")
IDS = torch.arange(3, 43).reshape(2, 20)


@pytest.fixture(scope="module")
def wide_dir(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the tiny model, but its output head has weights of its own, none of them zero."""
    folder = tmp_path_factory.mktemp("wide")
    AutoTokenizer.from_pretrained(tiny_dir).save_pretrained(folder)
    torch.manual_seed(1)
    config = LlamaConfig.from_pretrained(tiny_dir)
    config.tie_word_embeddings, config.pad_token_id = False, None
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model.eval()(IDS).logits
    return found


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def train(model: Any, steps: int = 8) -> list[float]:
    """Plain AdamW on one batch: the losses."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model.train()(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


LORAS = [
    lora(),
    lora(lora_attn_modules=["q_proj", "output_proj"], apply_lora_to_mlp=True),
    lora(apply_lora_to_output=True),
    lora(use_dora=True, apply_lora_to_output=True),
]


@pytest.mark.parametrize("config", LORAS, ids=["attention", "mlp", "output", "dora"])
def test_an_adapter_begins_as_the_base_learns_and_is_the_same_once_saved(
    config: Any, wide_dir: Path, tmp_path: Path
) -> None:
    plan = make_plan(config)
    model = load(plan, wide_dir, None, CPU)
    before = logits(plain(wide_dir))
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=0)
    losses = train(model)
    assert losses[-1] < losses[0]
    save(plan, model, tmp_path)
    loaded = PeftModel.from_pretrained(plain(wide_dir), str(tmp_path))
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=0)
    assert (logits(model) - before).abs().max() > 1e-2  # so that what is compared was learned


def test_an_adapters_folder_has_no_path_of_this_machine(wide_dir: Path, tmp_path: Path) -> None:
    plan = make_plan(lora(apply_lora_to_output=True), source=str(wide_dir))
    save(plan, load(plan, wide_dir, None, CPU), tmp_path)
    config = (tmp_path / "adapter_config.json").read_text()
    assert json.loads(config)["base_model_name_or_path"] == "tiny"
    assert str(wide_dir) not in config
    names = {file.name for file in tmp_path.iterdir()}
    assert {"adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert "README.md" not in names
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert all("lora_" in name and value.dtype == torch.float32 for name, value in tensors.items())


def test_the_hubs_name_is_the_base_models(tiny_dir: Path, tmp_path: Path) -> None:
    plan = make_plan(lora(), source="HuggingFaceTB/SmolLM2-135M-Instruct")
    save(plan, load(plan, tiny_dir, None, CPU), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_tied_embedding_stays_as_it_is_under_an_adapter_of_the_head(tiny_dir: Path) -> None:
    model = load(make_plan(lora(apply_lora_to_output=True)), tiny_dir, None, CPU)
    base = model.get_base_model()
    embedding = base.get_input_embeddings().weight
    before = embedding.detach().clone()
    train(model)
    assert base.lm_head.base_layer.weight is embedding
    assert not embedding.requires_grad
    assert torch.equal(embedding, before)


def test_the_head_that_the_loss_sees_has_its_adapter(wide_dir: Path) -> None:
    """TRL multiplies by the head's weight itself: that is the sum, and has the adapter's gradient."""
    for config in (lora(apply_lora_to_output=True), lora(apply_lora_to_output=True, use_dora=True)):
        model = load(make_plan(config), wide_dir, None, CPU)
        train(model)
        base = model.get_base_model()
        hidden = base.model(IDS).last_hidden_state
        merged = hidden @ base.get_output_embeddings().weight.T
        torch.testing.assert_close(merged, base.lm_head(hidden), atol=1e-5, rtol=0)
        merged.square().sum().backward()
        assert base.lm_head.lora_B["default"].weight.grad.abs().max() > 0


def test_an_adapter_is_trained_on(tiny_dir: Path, tmp_path: Path) -> None:
    plan = make_plan(lora())
    model = load(plan, tiny_dir, None, CPU)
    train(model)
    save(plan, model, tmp_path)
    continued = load(plan, tiny_dir, tmp_path, CPU)
    torch.testing.assert_close(logits(continued), logits(model), atol=1e-6, rtol=0)
    assert [n for n, p in continued.named_parameters() if p.requires_grad] == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]
    losses = train(continued)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 8}, r"algorithm_config\.rank: the adapter has 4, not 8"),
        ({"alpha": 16}, r"algorithm_config\.alpha: the adapter has 8, not 16"),
        ({"use_dora": True}, r"algorithm_config\.use_dora"),
        ({"apply_lora_to_mlp": True}, "on other modules"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(
    changes: dict[str, Any], message: str, tiny_dir: Path, tmp_path: Path
) -> None:
    plan = make_plan(lora())
    save(plan, load(plan, tiny_dir, None, CPU), tmp_path)
    with pytest.raises(BadRequest, match=message):
        load(make_plan(lora(**changes)), tiny_dir, tmp_path, CPU)


@pytest.mark.parametrize("on_head", [False, True])
def test_without_an_algorithm_the_adapter_is_merged(on_head: bool, tiny_dir: Path, tmp_path: Path) -> None:
    adapted = make_plan(lora(apply_lora_to_output=on_head))
    model = load(adapted, tiny_dir, None, CPU)
    train(model)
    save(adapted, model, tmp_path / "adapter")
    whole = load(make_plan(), tiny_dir, tmp_path / "adapter", CPU)
    torch.testing.assert_close(logits(whole), logits(model), atol=1e-5, rtol=0)
    assert all(p.requires_grad for p in whole.parameters())
    save(make_plan(), whole, tmp_path / "model")
    torch.testing.assert_close(logits(plain(tmp_path / "model")), logits(model), atol=1e-5, rtol=0)


def test_all_weights_train_and_are_the_same_once_saved(tiny_dir: Path, tmp_path: Path) -> None:
    plan = make_plan()
    model = load(plan, tiny_dir, None, CPU)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    losses = train(model)
    assert losses[-1] < losses[0]
    model.config.use_cache = False  # as the trainer leaves it
    save(plan, model, tmp_path)
    torch.testing.assert_close(logits(plain(tmp_path)), logits(model), atol=0, rtol=0)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["use_cache"] is True
    assert str(tiny_dir) not in json.dumps(config)
    AutoTokenizer.from_pretrained(tmp_path)


def test_a_converted_model_has_its_tied_weights_once(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stack.training.model.compute_dtype", lambda plan, device: torch.bfloat16)
    plan = make_plan(dtype="bf16")
    save(plan, load(plan, tiny_dir, None, CPU), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in tensors
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    torch.testing.assert_close(logits(plain(tmp_path)), logits(plain(tiny_dir)), atol=0.05, rtol=0)
