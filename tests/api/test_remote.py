"""A model behind an OpenAI-compatible endpoint, from registration to answer, over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from stack.settings import Settings
from tests.engine.remote.openai_server import Endpoint, delta, whole


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async with Endpoint().serving() as endpoint:
        yield endpoint


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, egress_allow="127.0.0.1", openai_api_key="sk-own")  # type: ignore[arg-type]


async def register(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
    source = f"{endpoint.base_url}#gpt"
    answer = await client.post("/v1/models", json={"model_id": "remote", "provider_model_id": source})
    assert answer.status_code == 200, answer.text
    assert answer.json()["provider_id"] == "openai"


CHAT = {"model_id": "remote", "messages": [{"role": "user", "content": "hi"}]}


async def test_answers_with_the_caller_s_key_and_never_the_server_s(
    client: httpx.AsyncClient, endpoint: Endpoint
) -> None:
    await register(client, endpoint)
    endpoint.answer = whole("hello")
    answer = await client.post("/v1/inference/chat-completion", json=CHAT)
    assert answer.json()["completion_message"]["content"] == "hello"
    headers = {"X-LlamaStack-Provider-Data": json.dumps({"openai_api_key": "sk-mine"})}
    await client.post("/v1/inference/chat-completion", json=CHAT, headers=headers)
    assert endpoint.keys == [None, "Bearer sk-mine"]


async def test_streams(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
    await register(client, endpoint)
    endpoint.events = [delta(content="he"), delta(content="llo"), delta(finish_reason="stop")]
    answer = await client.post("/v1/inference/chat-completion", json={**CHAT, "stream": True})
    events = [json.loads(line[6:])["event"] for line in answer.text.splitlines() if line.startswith("data:")]
    assert [event["event_type"] for event in events] == ["start", "progress", "progress", "complete"]
    assert "".join(event["delta"]["text"] for event in events) == "hello"


async def test_the_endpoint_s_errors_keep_their_status(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
    await register(client, endpoint)
    endpoint.error = 429, {"Retry-After": "9"}, {"error": {"message": "slow down"}}
    answer = await client.post("/v1/inference/chat-completion", json={**CHAT, "stream": True})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "9")
    assert "slow down" in answer.json()["detail"]
