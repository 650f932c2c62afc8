"""Models registered over HTTP become servable, survive a restart, and free their replicas when deleted."""

from __future__ import annotations

import concurrent.futures
import time
from pathlib import Path
from typing import Any

import pytest
from llama_stack_client import APIStatusError, BadRequestError, LlamaStackClient, NotFoundError

GREEDY = {"strategy": {"type": "greedy"}, "max_tokens": 4}


def until_ready(client: LlamaStackClient, model_id: str, timeout_s: float = 90) -> dict[str, Any]:
    """The model's metadata once it is ready."""
    deadline = time.monotonic() + timeout_s
    while True:
        metadata = dict(client.models.retrieve(model_id).metadata)
        if metadata.get("status") == "ready":
            return metadata
        assert metadata.get("status") != "failed", metadata
        assert time.monotonic() < deadline, metadata
        time.sleep(0.3)


def ask_at_once(client: LlamaStackClient, model_id: str, requests: int) -> list[int]:
    """The status of each of many requests; a refused one says when to come back."""

    def ask(_: int) -> int:
        try:
            client.inference.completion(
                model_id=model_id,
                content="Once upon a time",
                sampling_params={"strategy": {"type": "top_p", "temperature": 1.0}, "max_tokens": 60},
            )
        except APIStatusError as error:
            retry = error.response.headers["retry-after"]
            return error.status_code if int(retry) >= 1 else 0
        return 200

    with concurrent.futures.ThreadPoolExecutor(requests) as pool:
        return list(pool.map(ask, range(requests)))


def test_declared_models_are_listed(client: LlamaStackClient) -> None:
    models = {model.identifier: model for model in client.models.list()}
    assert models["smollm2-135m"].api_model_type == "llm"
    assert models["all-MiniLM-L6-v2"].api_model_type == "embedding"
    assert models["all-MiniLM-L6-v2"].metadata["embedding_dimension"] == 384
    with pytest.raises(BadRequestError, match="declared"):
        client.models.unregister("smollm2-135m")


def test_a_directory_is_served_and_deleted(client: LlamaStackClient, smollm2_dir: Path) -> None:
    name = "team/smol"
    registered = client.models.register(
        model_id=name,
        provider_model_id=str(smollm2_dir),
        metadata={"num_cpus": 0.5, "max_batch": 2, "max_queue": 1},
    )
    assert registered.identifier == name
    with pytest.raises(APIStatusError) as early:
        client.inference.completion(model_id=name, content="The capital of France is", sampling_params=GREEDY)
    assert early.value.status_code == 503
    assert until_ready(client, name)["num_cpus"] == 0.5
    answer = client.inference.completion(
        model_id=name, content="The capital of France is", sampling_params=GREEDY
    )
    assert answer.content.startswith(" Paris")
    with pytest.raises(BadRequestError, match="already registered"):
        client.models.register(model_id=name, provider_model_id=str(smollm2_dir), metadata={"max_batch": 3})
    statuses = ask_at_once(client, name, 8)
    assert statuses.count(200) >= 3
    assert statuses.count(429) >= 1
    assert len(statuses) == statuses.count(200) + statuses.count(429)
    client.models.unregister(name)
    with pytest.raises(NotFoundError):
        client.models.retrieve(name)
    with pytest.raises(NotFoundError):
        client.inference.completion(model_id=name, content="x", sampling_params=GREEDY)


def test_an_embedding_directory_is_served(client: LlamaStackClient, minilm_dir: Path) -> None:
    name = "minilm-again"
    registered = client.models.register(
        model_id=name, provider_model_id=str(minilm_dir), model_type="embedding", metadata={"num_cpus": 0.2}
    )
    assert registered.metadata["embedding_dimension"] == 384
    until_ready(client, name)
    assert len(client.inference.embeddings(model_id=name, contents=["hello"]).embeddings[0]) == 384
    client.models.unregister(name)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("/no/such/folder", "no/such/folder|does not exist|not found"),
        ("pypi://no-such-package-of-models==9.9.9/x", "no-such-package-of-models"),
        ("ftp://host/model", "ftp"),
    ],
)
def test_a_source_that_cannot_be_served_is_refused(client: LlamaStackClient, source: str, words: str) -> None:
    began = time.monotonic()
    with pytest.raises(BadRequestError, match=words):
        client.models.register(model_id="bad", provider_model_id=source)
    assert time.monotonic() - began < 8
    with pytest.raises(NotFoundError):
        client.models.retrieve("bad")
