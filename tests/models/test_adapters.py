"""Adapters in the registry: what may be registered, whose replicas answer, and what is said meanwhile."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from stack.engine.base import Adapter
from stack.errors import BadRequest, NotFound, NotReady
from stack.models import adapters, registration, sources
from stack.models.reconciler import Reconciler
from stack.models.serving import Serving
from stack.schemas.models import Model, RegisterModelRequest
from stack.settings import Settings
from stack.store.database import Database, open_database
from stack.store.model_status import ModelStatuses
from stack.store.registry import Registry

READY = {"session": "s", "context_length": 64}


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model: Any = LlamaForCausalLM.from_pretrained(tiny_llama)
    folder = tmp_path_factory.mktemp("adapters") / "mine"
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"])).save_pretrained(folder)
    return folder


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    async with open_database(settings) as database:
        yield database


@pytest.fixture
def statuses(database: Database) -> ModelStatuses:
    return ModelStatuses(database, "s")


@pytest.fixture
async def models(database: Database, statuses: ModelStatuses, tiny_llama: Path) -> Registry[Model]:
    models = Registry(database, Model)
    await models.declare(model("base", str(tiny_llama)))
    await statuses.set("base", "ready", None, READY)
    return models


def model(identifier: str, source: str, **metadata: Any) -> Model:
    return Model(
        identifier=identifier, provider_resource_id=source, provider_id="transformers", metadata=metadata
    )


@pytest.fixture
def check(settings: Settings, statuses: ModelStatuses, models: Registry[Model]) -> Any:
    async def check(source: Path | str, **request: Any) -> Model:
        request = {"model_id": "mine", "provider_model_id": str(source)} | request
        return await registration.check(RegisterModelRequest.model_validate(request), settings, statuses)

    return check


def changed(folder: Path, to: Path, **config: Any) -> Path:
    """A copy of an adapter whose adapter_config.json says something else."""
    shutil.copytree(folder, to)
    path = to / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return to


async def test_an_adapter(check: Any, adapter: Path) -> None:
    metadata = {"base_model": "base", "team": "a"}
    assert await check(adapter, metadata=metadata) == model("mine", str(adapter), **metadata)
    with pytest.raises(BadRequest, match=r"is a LoRA adapter: set metadata\.base_model"):
        await check(adapter)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "type IA3"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save, which is not served"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.gate"]}, "target_parameters"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_alpha": None}, "no number lora_alpha"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "no patterns"),
    ],
)
async def test_what_is_not_served_is_named(
    check: Any, adapter: Path, tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    folder = changed(adapter, tmp_path / "changed", **config)
    with pytest.raises(BadRequest, match=words):
        await check(folder, metadata={"base_model": "base"})


@pytest.mark.parametrize(
    "config", [{"use_dora": True}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}]
)
async def test_what_is_served(check: Any, adapter: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    folder = changed(adapter, tmp_path / "changed", **config)
    assert await check(folder, metadata={"base_model": "base"})


async def test_only_safetensors_are_read(check: Any, adapter: Path, tmp_path: Path) -> None:
    folder = changed(adapter, tmp_path / "pickled")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(BadRequest, match=r"without adapter_model\.safetensors"):
        await check(folder, metadata={"base_model": "base"})


async def test_the_base_must_take_adapters(
    check: Any, adapter: Path, models: Registry[Model], statuses: ModelStatuses, tiny_llama: Path
) -> None:
    await models.register(model("adapter", str(adapter), base_model="base"))
    embedder = model("embedder", "/e").model_copy(
        update={"model_type": "embedding", "provider_id": "sentence-transformers"}
    )
    await models.register(embedder)
    await models.register(model("remote", "http://h/v1").model_copy(update={"provider_id": "openai"}))
    await models.register(model("sees", "/elsewhere"))
    await statuses.set("sees", "ready", None, READY | {"takes_adapters": False})
    for base, words in [
        ("nobody", "not registered"), ("adapter", "an adapter itself"), ("mine", "not registered"),
        ("embedder", "an embedding model"), ("remote", "another server"), ("sees", "takes no adapters"),
        (7, "the id of a model, not 7"), ("", "the id of a model"),
    ]:  # fmt: skip
        with pytest.raises(BadRequest, match=words):
            await check(adapter, metadata={"base_model": base})
    with pytest.raises(BadRequest, match="is a whole model"):
        await check(tiny_llama, metadata={"base_model": "base"})
    with pytest.raises(BadRequest, match=r"metadata\.num_cpus is set by the base"):
        await check(adapter, metadata={"base_model": "base", "num_cpus": 2})


async def test_shapes_are_compared_with_the_base(
    check: Any, adapter: Path, tmp_path: Path, models: Registry[Model], tiny_llama: Path
) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=29, hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    shutil.copytree(tiny_llama, tmp_path / "wider")
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wider")
    await models.register(model("wider", str(tmp_path / "wider")))
    with pytest.raises(BadRequest, match=r"made for another model: its .*_proj takes 16"):
        await check(adapter, metadata={"base_model": "wider"})


async def test_an_adapter_is_served_by_its_base_at_once(
    settings: Settings, statuses: ModelStatuses, models: Registry[Model]
) -> None:
    called: list[Any] = []

    def inference(*arguments: Any) -> Any:
        called.append(arguments)
        return arguments

    async with httpx.AsyncClient() as client:
        serving = Serving(settings, statuses, client, inference)
        await models.register(model("mine", "/here", base_model="base"))
        _, length = await serving.open("mine", "llm")
        await models.delete("mine")
        with pytest.raises(NotFound):
            await serving.open("mine", "llm")
        await models.register(model("mine", "/here", base_model="base"))
        await serving.open("mine", "llm")
        assert length == 64
        (base, first), (_, second) = called
        assert (base, first.model_id, first.source) == ("base", "mine", "/here")
        assert first.version != second.version, "registered anew, it may have other weights"
        assert await adapters.registered(statuses, [("mine", "/here"), ("gone", "/x")]) == [second]
        assert isinstance(second, Adapter)
        await statuses.set("base", "loading", None, READY)
        with pytest.raises(NotReady, match="'mine' is not ready yet, it is loading"):
            await serving.open("mine", "llm")
        await models.retract("base")
        with pytest.raises(NotReady, match="'mine' is an adapter: model 'base' is not registered"):
            await serving.open("mine", "llm")


async def test_its_status_is_that_of_its_base(statuses: ModelStatuses, models: Registry[Model]) -> None:
    await models.register(model("mine", "/here", base_model="base"))
    await models.register(model("orphan", "/here", base_model="gone"))
    found = {shown.identifier: status for shown, status in await adapters.find_all(statuses)}
    assert found["mine"] == found["base"]
    assert (await adapters.find(statuses, "mine"))[1] == found["base"]
    for orphan in (found["orphan"], (await adapters.find(statuses, "orphan"))[1]):
        assert orphan is not None
        assert (orphan.state, orphan.detail) == ("failed", "its base model 'gone' is not registered")
    with pytest.raises(BadRequest, match="'base' is the base of 'mine'"):
        await adapters.refuse_with_adapters(models, "base")
    await adapters.refuse_with_adapters(models, "mine")


async def test_no_application_is_deployed(models: Registry[Model], statuses: ModelStatuses) -> None:
    deployed: list[str] = []

    async def applications() -> dict[str, Any]:
        return {}

    async def deploy(args: Any) -> None:
        deployed.append(args.model_id)

    cluster = SimpleNamespace(session="s", applications=applications, deploy=deploy)
    await models.register(model("mine", "/here", base_model="base"))
    await models.register(model("whole", "/there"))
    await Reconciler(cast(Any, cluster), models, statuses).step()
    assert deployed == ["whole"]


async def test_the_storage_holds_models(
    settings: Settings, check: Any, tiny_llama: Path, adapter: Path, tmp_path: Path
) -> None:
    storage = settings.home / "storage" / "training" / "job"
    shutil.copytree(tiny_llama, storage / "whole")
    shutil.copytree(adapter, storage / "adapter")
    whole = await check("storage://training/job/whole")
    assert whole.metadata["context_length"] == 64
    assert await check("storage://training/job/adapter/", metadata={"base_model": "base"})
    found = sources.fetch("storage://training/job/whole", tmp_path / "cache", storage=settings.storage)
    assert found == storage / "whole", "in place"
    for wrong in ("storage://", "storage:///etc", "storage://../x", "storage://a/../../x"):
        with pytest.raises(BadRequest, match="names no folder of the storage"):
            await check(wrong)
    with pytest.raises(BadRequest, match="only the server reads"):
        sources.fetch("storage://training/job/whole", tmp_path / "cache")


async def test_a_storage_elsewhere_is_downloaded_once(
    settings: Settings, tiny_llama: Path, adapter: Path, tmp_path: Path
) -> None:
    import fsspec

    elsewhere = settings.model_copy(update={"storage_url": "memory://bucket/stack"})
    memory = fsspec.filesystem("memory")
    memory.put(str(adapter), "/bucket/stack/job/model", recursive=True)
    assert (await sources.check("storage://job/model", elsewhere)).kind == "adapter"
    cache = tmp_path / "cache"
    folder = sources.fetch("storage://job/model", cache, storage=elsewhere.storage)
    assert folder.is_relative_to(cache)
    assert (folder / "adapter_model.safetensors").read_bytes() == (
        adapter / "adapter_model.safetensors"
    ).read_bytes()
    assert sources.fetch("storage://job/model", cache, storage=elsewhere.storage) == folder
