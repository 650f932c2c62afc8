from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from stack.context import Stack


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.models.tiny import make_llama

    return make_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


def request(folder: Path, **changes: object) -> dict[str, object]:
    return {"model_id": "org/mine", "provider_model_id": str(folder), "metadata": {"team": "a"}, **changes}


async def test_lists_models_with_what_their_replicas_told(client: httpx.AsyncClient) -> None:
    data = (await client.get("/v1/models")).json()["data"]
    assert [model["identifier"] for model in data] == ["org/embedder", "tiny"]
    embedder, tiny = data
    assert embedder["metadata"]["embedding_dimension"] == 384
    assert tiny["metadata"] == {"n": 1, "none": None, "context_length": 2048, "status": "ready"}


async def test_registers_a_model_that_then_becomes_ready(
    client: httpx.AsyncClient, stack: Stack, folder: Path
) -> None:
    answer = await client.post("/v1/models", json=request(folder))
    assert answer.status_code == 200, answer.text
    model = answer.json()
    assert (model["identifier"], model["provider_id"], model["model_type"]) == (
        "org/mine", "transformers", "llm",
    )  # fmt: skip
    assert model["metadata"]["team"] == "a"
    assert model["metadata"]["status"] == "pending"
    assert (await client.get("/v1/models/org/mine")).json() == model
    assert (await client.get("/v1/models/org%2Fmine")).json() == model
    await stack.model_status.set("org/mine", "failed", "the weights do not fit", {"session": "s"})
    metadata = (await client.get("/v1/models/org/mine")).json()["metadata"]
    assert (metadata["status"], metadata["status_detail"]) == ("failed", "the weights do not fit")


async def test_a_status_from_before_a_restart_is_void(client: httpx.AsyncClient, stack: Stack) -> None:
    await stack.model_status.set("tiny", "ready", description={"session": "an earlier one"})
    assert (await client.get("/v1/models/tiny")).json()["metadata"]["status"] == "pending"


async def test_registering_twice(client: httpx.AsyncClient, folder: Path) -> None:
    first = await client.post("/v1/models", json=request(folder))
    assert (await client.post("/v1/models", json=request(folder))).json() == first.json()
    other = await client.post("/v1/models", json=request(folder, metadata={"team": "b"}))
    assert other.status_code == 400
    assert other.json()["title"] == "Already Registered"
    assert "org/mine" in other.json()["detail"]
    assert (await client.get("/v1/models/org/mine")).json() == first.json()


async def test_deletes_a_model(client: httpx.AsyncClient, stack: Stack, folder: Path) -> None:
    await client.post("/v1/models", json=request(folder))
    await stack.model_status.set("org/mine", "ready")
    answer = await client.delete("/v1/models/org/mine")
    assert (answer.status_code, answer.json()) == (200, None)
    assert (await client.get("/v1/models/org/mine")).status_code == 404
    assert (await client.delete("/v1/models/org/mine")).status_code == 404
    again = await client.post("/v1/models", json=request(folder, metadata={}))
    assert again.json()["metadata"]["status"] == "pending"


async def test_a_declared_model_is_removed_where_it_is_declared(client: httpx.AsyncClient) -> None:
    answer = await client.delete("/v1/models/tiny")
    assert answer.status_code == 400
    assert "stack.yaml" in answer.json()["detail"]
    assert (await client.get("/v1/models/tiny")).status_code == 200


@pytest.mark.parametrize("model_id", ["a\0b", "x" * 300, ""])
async def test_refuses_ids_that_cannot_be_kept(
    client: httpx.AsyncClient, model_id: str, folder: Path
) -> None:
    answer = await client.post("/v1/models", json=request(folder, model_id=model_id))
    assert answer.status_code == 400, answer.text


async def test_a_source_that_cannot_be_served_is_refused(client: httpx.AsyncClient, tmp_path: Path) -> None:
    answer = await client.post("/v1/models", json=request(tmp_path))
    assert answer.status_code == 400
    assert (await client.get("/v1/models/org/mine")).status_code == 404
