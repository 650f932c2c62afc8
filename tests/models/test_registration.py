from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from stack.errors import BadRequest
from stack.models import registration
from stack.models.args import ModelArgs
from stack.schemas.models import Model, RegisterModelRequest
from stack.settings import Settings
from stack.store.database import open_database
from stack.store.model_status import ModelStatuses
from tests.engine.remote.openai_server import Endpoint
from tests.models.tiny import make_wheel


async def check(settings: Settings, **request: Any) -> Model:
    async with open_database(settings) as database:
        statuses = ModelStatuses(database)
        return await registration.check(RegisterModelRequest.model_validate(request), settings, statuses)


async def test_a_text_model(settings: Settings, tiny_llama: Path) -> None:
    metadata = {"owner": "me", "nothing": None, "max_batch": 4}
    model = await check(settings, model_id="tiny", provider_model_id=str(tiny_llama), metadata=metadata)
    assert model == Model(
        identifier="tiny",
        provider_resource_id=str(tiny_llama),
        provider_id="transformers",
        model_type="llm",
        metadata={**metadata, "context_length": 64},
    )
    assert registration.to_args(model) == ModelArgs(
        model_id="tiny",
        source=str(tiny_llama),
        context_length=64,
        max_batch=4,
        metadata={**metadata, "context_length": 64},
    )


async def test_the_model_id_may_be_the_source(settings: Settings, tiny_llama: Path) -> None:
    model = await check(settings, model_id=str(tiny_llama))
    assert model.identifier == model.provider_resource_id == str(tiny_llama)
    with pytest.raises(BadRequest, match="'smollm' is not a model source; write"):
        await check(settings, model_id="smollm")


async def test_the_type_of_what_is_not_downloaded_must_be_said(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    make_wheel(tmp_path, "tinymodel", "1.0", {"tiny/config.json": b"{}"})
    source = "pypi://tinymodel==1.0/tiny"
    with pytest.raises(BadRequest, match="say model_type"):
        await check(settings, model_id="m", provider_model_id=source)
    model = await check(settings, model_id="m", provider_model_id=source, model_type="embedding")
    assert (model.provider_id, model.metadata) == ("sentence-transformers", {})


async def test_an_embedding_model(settings: Settings, minilm_dir: Path) -> None:
    model = await check(settings, model_id="minilm", provider_model_id=str(minilm_dir))
    assert (model.provider_id, model.model_type) == ("sentence-transformers", "embedding")
    assert model.metadata == {"embedding_dimension": 384, "context_length": 256}
    args = registration.to_args(model)
    assert (args.provider_id, args.model_type, args.context_length) == (
        "sentence-transformers",
        "embedding",
        256,
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metadata": {"embedding_dimension": 768}}, "embedding_dimension is 768, but .* gives 384"),
        ({"metadata": {"embedding_dimension": "384"}}, "positive integer, not '384'"),
        ({"metadata": {"embedding_dimension": True}}, "positive integer, not True"),
        ({"model_type": "llm"}, "is an embedding model"),
        ({"provider_id": "transformers"}, "serves models of type 'llm'"),
        (
            {"provider_id": "vllm"},
            "no model provider 'vllm', only transformers, sentence-transformers, openai",
        ),
        ({"provider_id": "openai"}, "not an OpenAI-compatible endpoint; write"),
        ({"metadata": {"max_batch": 0}}, r"metadata\.max_batch: .*greater than or equal to 1, not 0"),
        ({"metadata": {"dtype": "int8"}}, r"metadata\.dtype: .*'auto'.*, not 'int8'"),
        ({"metadata": {"num_cpus": None}}, r"metadata\.num_cpus"),
        ({"metadata": {"min_replicas": 3}}, "min_replicas is 3, above max_replicas"),
        ({"metadata": {"context_length": 512}}, "context_length is 512, but .* at most 256"),
    ],
)
async def test_what_cannot_be_served_is_said(
    settings: Settings, minilm_dir: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadRequest, match=words):
        await check(settings, model_id="m", provider_model_id=str(minilm_dir), **changes)


async def test_a_model_behind_an_endpoint(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, egress_allow="127.0.0.1")
    async with Endpoint().serving() as endpoint:
        source = f"{endpoint.base_url}#gpt"
        model = await check(settings, model_id="remote", provider_model_id=source)
        assert (model.provider_id, model.provider_resource_id) == ("openai", source)
        assert model.metadata == {}
        embedder = await check(settings, model_id="e", provider_model_id=source, model_type="embedding")
        assert embedder.metadata == {"embedding_dimension": 2}
        endpoint.error = 401, {}, {"error": {"message": "no key"}}
        with pytest.raises(BadRequest, match=r"Or set metadata\.embedding_dimension"):
            await check(settings, model_id="e", provider_model_id=source, model_type="embedding")
        given = {"embedding_dimension": 8}
        embedder = await check(
            settings, model_id="e", provider_model_id=source, model_type="embedding", metadata=given
        )
        assert embedder.metadata == given
        with pytest.raises(BadRequest, match="not a public host"):
            await check(Settings(home=tmp_path), model_id="remote", provider_model_id=source)


async def test_an_endpoint_that_is_not_there_is_said_soon(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, egress_allow="127.0.0.1")
    started = time.monotonic()
    with pytest.raises(BadRequest, match=r"http://127\.0\.0\.1:9/v1 cannot be reached"):
        await check(settings, model_id="remote", provider_model_id="http://127.0.0.1:9/v1#gpt")
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "source", ["https://user:pw@host/v1#m", "https://host/v1?key=k#m", "https://", "https://2130706433/v1"]
)
async def test_endpoints_that_are_none(settings: Settings, source: str) -> None:
    with pytest.raises(BadRequest):
        await check(settings, model_id="remote", provider_model_id=source)
