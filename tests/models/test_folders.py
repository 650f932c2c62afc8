from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from stack.errors import BadRequest
from stack.models.folders import Facts, Folder, check_safetensors, facts, gguf_architectures, text_models


@pytest.fixture
def folder(tmp_path: Path, tiny_llama: Path) -> Path:
    """A copy of the tiny Llama that a test may break."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def change(path: Path, **values: object) -> None:
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_facts_of_a_text_model(folder: Path) -> None:
    assert facts(Folder.local(folder)) == Facts("llm", 64, 16)


def test_facts_of_an_embedding_model(minilm_dir: Path) -> None:
    assert facts(Folder.local(minilm_dir)) == Facts("embedding", 256, 384)


def test_the_tables_are_those_of_transformers() -> None:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    assert text_models()["llama"] == "LlamaForCausalLM"
    assert text_models().keys() == {
        *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    }  # fmt: skip
    assert {"llama", "qwen2", "qwen3", "gemma3"} <= gguf_architectures()


def test_torch_is_not_imported() -> None:
    import subprocess

    code = (
        "import sys; from stack.models import folders, registration, sources; folders.text_models();"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "weights.pkl"])
def test_pickles_are_refused_with_a_way_out(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"a pickle")
    with pytest.raises(BadRequest, match=r"pickles only \(.*save_pretrained"):
        facts(Folder.local(folder))


def test_pickles_beside_safetensors_are_ignored(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    assert facts(Folder.local(folder)).kind == "llm"


def test_code_that_comes_with_a_model_is_refused(folder: Path) -> None:
    auto_map = {"AutoModelForCausalLM": "modeling_mine.Mine"}
    change(folder / "config.json", auto_map=auto_map, model_type="mine", architectures=["MineForCausalLM"])
    with pytest.raises(BadRequest, match="needs code of its own"):
        facts(Folder.local(folder))
    change(folder / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
    assert facts(Folder.local(folder)).kind == "llm"  # transformers has it: the code is not needed


def test_code_in_an_embedding_model_is_refused(tmp_path: Path, minilm_dir: Path) -> None:
    folder = Path(shutil.copytree(minilm_dir, tmp_path / "minilm"))
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "custom_pooling.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(BadRequest, match=r"custom_pooling\.Pooling"):
        facts(Folder.local(folder))
    modules[1] = {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense/config.json").write_text('{"out_features": 128}')
    (folder / "2_Dense/pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(BadRequest, match="2_Dense has no model"):
        facts(Folder.local(folder))
    (folder / "2_Dense/model.safetensors").write_bytes(b"")
    assert facts(Folder.local(folder)).embedding_dimension == 128


def test_what_a_folder_lacks_is_said(folder: Path) -> None:
    change(folder / "config.json", architectures=["ResNetForImageClassification"], model_type="resnet")
    with pytest.raises(BadRequest, match="ResNetForImageClassification"):
        facts(Folder.local(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(BadRequest, match=r"config\.json is not JSON"):
        facts(Folder.local(folder))
    (folder / "config.json").unlink()
    with pytest.raises(BadRequest, match=r"has no config\.json"):
        facts(Folder.local(folder))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(BadRequest, match="adapter"):
        facts(Folder.local(folder))


def test_a_missing_tokenizer_or_shard_is_said(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadRequest, match=r"lacks model-00001-of-00002\.safetensors"):
        facts(Folder.local(folder))
    (folder / "model.safetensors.index.json").unlink()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadRequest, match="no tokenizer"):
        facts(Folder.local(folder))


def test_a_damaged_safetensors_file_is_seen(folder: Path) -> None:
    file = folder / "model.safetensors"
    check_safetensors(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(BadRequest, match="cut short"):
        check_safetensors(file)
    for junk in (b"", b"PK\x03\x04", b"\x80\x02}q\x00." * 10, b"\x02\0\0\0\0\0\0\0[]", whole[:50]):
        file.write_bytes(junk)
        with pytest.raises(BadRequest, match=r"not a safetensors file|cut short"):
            check_safetensors(file)


@pytest.mark.parametrize("config", ["[]", "3", '{"text_config": 3, "architectures": 5}', "[" * 100_000])
def test_a_configuration_of_another_form(folder: Path, config: str) -> None:
    (folder / "config.json").write_text(config)
    with pytest.raises(BadRequest):
        facts(Folder.local(folder))
