"""LoRA adapters of the declared SmolLM2: served by its replicas at once, freed when they are deleted."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from llama_stack_client import BadRequestError, LlamaStackClient, NotFoundError
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.serve.conftest import Server

BASE = "smollm2-135m"
GREEDY: Any = {"strategy": {"type": "greedy"}, "max_tokens": 8}
PROMPT = "The capital of France is"
AT_ONCE_S = 5
FREED_S = 10

MakeAdapter = Callable[[str, int], Path]


@pytest.fixture(scope="module")
def make_adapter(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeAdapter:
    """A folder of that name with an adapter that says something else for every seed."""
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    root = tmp_path_factory.mktemp("adapters")
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])

    def make(name: str, seed: int) -> Path:
        torch.manual_seed(seed)
        adapted: Any = get_peft_model(model, config)
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.1)
        adapted.save_pretrained(root / name)
        adapted.unload()
        return root / name

    return make


@pytest.fixture
def adapter(client: LlamaStackClient, make_adapter: MakeAdapter) -> Iterator[str]:
    folder = make_adapter("first", 1)
    client.models.register(model_id="first", provider_model_id=str(folder), metadata={"base_model": BASE})
    yield "first"
    client.models.unregister("first")


def say(client: LlamaStackClient, model_id: str) -> str:
    answer = client.inference.completion(model_id=model_id, content=PROMPT, sampling_params=GREEDY)
    return str(answer.content)


def held(server: Server, at_most: int) -> bool:
    """Whether the base's replica tells Prometheus soon that it holds so few adapters."""
    found = re.search(r"http://127\.0\.0\.1:\d+/metrics", server.log.read_text())
    assert found
    deadline = time.monotonic() + FREED_S + 20  # Ray's own reports come every few seconds
    while time.monotonic() < deadline:
        values = re.findall(r"ray_stack_adapters\{[^}]*\} ([\d.]+)", httpx.get(found[0]).text)
        if values and max(map(float, values)) <= at_most:
            return True
        time.sleep(0.5)
    return False


def test_an_adapter_answers_at_once(client: LlamaStackClient, make_adapter: MakeAdapter) -> None:
    base = say(client, BASE)
    assert base.startswith(" Paris")
    folder = make_adapter("second", 2)
    began = time.monotonic()
    registered = client.models.register(
        model_id="team/second", provider_model_id=str(folder), metadata={"base_model": BASE}
    )
    assert registered.metadata["status"] == "ready"
    assert registered.metadata["context_length"] == client.models.retrieve(BASE).metadata["context_length"]
    other = say(client, "team/second")
    assert time.monotonic() - began < AT_ONCE_S
    assert other != base
    assert say(client, "team/second") == other
    assert say(client, BASE) == base
    client.models.unregister("team/second")
    with pytest.raises(NotFoundError):
        say(client, "team/second")


def test_it_streams_and_chats(client: LlamaStackClient, adapter: str) -> None:
    chunks = client.inference.completion(
        model_id=adapter, content=PROMPT, sampling_params=GREEDY, stream=True
    )
    assert "".join(chunk.delta for chunk in chunks) == say(client, adapter)
    messages: Any = [{"role": "user", "content": "Say hello."}]
    said = {
        model_id: client.inference.chat_completion(
            model_id=model_id, messages=messages, sampling_params=GREEDY
        ).completion_message.content
        for model_id in (BASE, adapter)
    }
    assert said[BASE] != said[adapter]


def test_other_weights_under_the_same_id(client: LlamaStackClient, make_adapter: MakeAdapter) -> None:
    said = set()
    for seed in (3, 4):  # the second ones lie where the first ones did
        folder = make_adapter("again", seed)
        client.models.register(model_id="again", provider_model_id=str(folder), metadata={"base_model": BASE})
        said.add(say(client, "again"))
        client.models.unregister("again")
    assert len(said) == 2


def test_a_deleted_adapter_is_freed(client: LlamaStackClient, server: Server, adapter: str) -> None:
    say(client, adapter)
    folder = Path(str(client.models.retrieve(adapter).provider_resource_id))
    client.models.register(model_id="doomed", provider_model_id=str(folder), metadata={"base_model": BASE})
    say(client, "doomed")
    client.models.unregister("doomed")
    assert held(server, 1)
    assert say(client, adapter)


def test_the_base_of_an_adapter_stays(client: LlamaStackClient, adapter: str) -> None:
    with pytest.raises(BadRequestError, match="base of 'first'"):
        client.models.unregister(BASE)


def test_what_is_wrong_is_said(client: LlamaStackClient, make_adapter: MakeAdapter, adapter: str) -> None:
    folder = str(make_adapter("wrong", 5))

    def register(**metadata: str) -> None:
        client.models.register(model_id="wrong", provider_model_id=folder, metadata=metadata)

    with pytest.raises(BadRequestError, match=r"set metadata\.base_model"):
        register()
    with pytest.raises(BadRequestError, match="not registered"):
        register(base_model="nobody")
    with pytest.raises(BadRequestError, match="an adapter itself"):
        register(base_model=adapter)
    with pytest.raises(BadRequestError, match="an embedding model"):
        register(base_model="all-MiniLM-L6-v2")
    register(base_model=BASE)
    (Path(folder) / "adapter_model.safetensors").unlink()
    with pytest.raises(BadRequestError, match="'wrong' cannot be served"):
        say(client, "wrong")
    client.models.unregister("wrong")
    assert say(client, BASE).startswith(" Paris")
