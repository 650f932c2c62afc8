"""Who may ask, and what telemetry keeps of it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from llama_stack_client import AsyncLlamaStackClient, AuthenticationError

from stack import tracing
from stack.context import Stack
from stack.settings import Settings
from stack.telemetry.conversations import INPUT, OUTPUT
from tests.api.fake import FakeInference, complete, progress, start
from tests.api.test_tracing import spans_of

CHAT = {"model_id": "tiny", "messages": [{"role": "user", "content": "a secret"}]}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(autouse=True)
def answer(fake: FakeInference) -> None:
    fake.script = [start(), progress("an answer"), complete()]


async def attributes_of(client: httpx.AsyncClient, headers: dict[str, str]) -> dict[str, Any]:
    """Of the request's and the chat's span."""
    answer = await client.post("/v1/inference/chat-completion", json=CHAT, headers=headers)
    assert answer.status_code == 200, answer.text
    spans = await spans_of(client, answer.headers["x-trace-id"], 2)
    found: dict[str, Any] = {}
    for span in spans:
        found |= span["attributes"]
    assert found["gen_ai.operation.name"] == "chat"
    return found


async def test_without_the_setting_any_key_or_none_will_do(client: httpx.AsyncClient) -> None:
    for headers in ({}, bearer("none"), bearer("sk-stack-nobodys"), {"authorization": "Basic eDp5"}):
        assert (await client.get("/v1/models", headers=headers)).status_code == 200


async def test_the_span_of_a_request_names_its_key(stack: Stack, client: httpx.AsyncClient) -> None:
    key = await stack.api_keys.create("alice")
    attributes = await attributes_of(client, bearer(key))
    assert attributes["stack.api_key"] == "alice"
    assert key not in str(attributes)


@pytest.mark.parametrize("by_setting", [False, True])
@pytest.mark.parametrize("by_key", [False, True, None])
async def test_a_key_decides_whether_content_is_recorded(
    settings: Settings, stack: Stack, client: httpx.AsyncClient, by_setting: bool, by_key: bool | None
) -> None:
    object.__setattr__(settings, "telemetry_content", by_setting)
    key = await stack.api_keys.create("alice", by_key)
    attributes = await attributes_of(client, bearer(key))
    recorded = by_setting if by_key is None else by_key
    assert (INPUT in attributes, OUTPUT in attributes) == (recorded, recorded)
    assert ("a secret" in str(attributes)) is recorded
    # The next request without a key is again as the settings say.
    assert (INPUT in await attributes_of(client, {})) is by_setting


async def test_a_job_is_recorded_as_its_request(stack: Stack) -> None:
    with tracing.content(False):
        assert (await stack.jobs.submit("echo", {})).record_content is False
    assert (await stack.jobs.submit("echo", {})).record_content is None


@pytest.mark.parametrize("parent", [None, "00-" + "1" * 32 + "-" + "2" * 16 + "-01"])
async def test_another_process_goes_on_with_it(parent: str | None) -> None:
    for allowed in (True, False, None):
        tracing.go_on(parent, allowed)
        assert tracing.content_allowed() is allowed


class TestRequired:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"require_api_key": True})

    @pytest.mark.parametrize(
        "headers", [{}, bearer(""), bearer("none"), bearer("sk-stack-x"), {"authorization": "Basic eDp5"}]
    )
    @pytest.mark.parametrize(
        "path",
        [
            "/v1/models",
            "/v1/healthy",
            "/v1/telemetry/traces/x",
            "/uix",
            "/ui/../v1/models",
            "/v1/health/../models",
            "/docs/x",
            "/nowhere",
        ],
    )
    async def test_others_are_refused(
        self, client: httpx.AsyncClient, path: str, headers: dict[str, str]
    ) -> None:
        answer = await client.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-trace-id"]
        assert answer.json()["title"] == "Unauthorized"
        assert "stack keys create" in answer.json()["detail"]

    async def test_what_needs_none(self, client: httpx.AsyncClient) -> None:
        for path in ("/v1/health", "/ui", "/ui/app.js", "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200, path

    async def test_those_with_a_key_are_answered(self, stack: Stack, client: httpx.AsyncClient) -> None:
        key = await stack.api_keys.create("alice")
        for scheme in ("Bearer", "bearer"):
            answer = await client.get("/v1/models", headers={"authorization": f"{scheme} {key}"})
            assert answer.status_code == 200
        await stack.api_keys.delete("alice")
        assert (await client.get("/v1/models", headers=bearer(key))).status_code == 401

    async def test_the_client_library(self, stack: Stack, client: httpx.AsyncClient) -> None:
        key = await stack.api_keys.create("alice")
        ours: dict[str, Any] = {"base_url": "http://stack", "http_client": client}
        assert await AsyncLlamaStackClient(api_key=key, **ours).models.list()
        with pytest.raises(AuthenticationError, match="does not know the API key"):
            await AsyncLlamaStackClient(api_key="wrong", **ours).models.list()
