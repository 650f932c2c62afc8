from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from llama_stack_client import AsyncLlamaStackClient, BadRequestError, NotFoundError
from llama_stack_client.types import UserMessage

from stack.context import Stack
from stack.schemas.inference import CompletionResponseStreamChunk
from tests.api.fake import FakeInference, complete, progress, start

SECRET_WORD = {"patterns": [{"pattern": "xyzzy", "message": "Not that word."}]}


@pytest.fixture(autouse=True)
async def _children_end(stack: Stack) -> AsyncIterator[None]:
    yield
    stack.shields.close()


async def register(client: httpx.AsyncClient, **request: Any) -> httpx.Response:
    return await client.post("/v1/shields", json=request)


async def run(client: httpx.AsyncClient, shield_id: str, *texts: str, **params: Any) -> httpx.Response:
    messages = [{"role": "user", "content": text} for text in texts]
    body = {"shield_id": shield_id, "messages": messages, "params": params}
    return await client.post("/v1/safety/run-shield", json=body)


async def test_the_client_library(client: httpx.AsyncClient) -> None:
    library = AsyncLlamaStackClient(base_url="http://stack", http_client=client, max_retries=0)
    shield = await library.shields.register(shield_id="org/words", provider_id="regex", params=SECRET_WORD)
    assert (shield.identifier, shield.provider_id, shield.params) == ("org/words", "regex", SECRET_WORD)
    assert [each.identifier for each in await library.shields.list()] == ["code-scanner", "org/words", "pii"]
    found = await library.shields.retrieve("org/words")
    assert found == shield
    messages = [UserMessage(role="user", content="say xyzzy")]
    answer = await library.safety.run_shield(shield_id="org/words", messages=messages, params={})
    assert answer.violation is not None
    assert answer.violation.violation_level == "error"
    assert answer.violation.user_message == "Not that word."
    assert answer.violation.metadata["shield_id"] == "org/words"
    messages = [UserMessage(role="user", content="say hello")]
    answer = await library.safety.run_shield(shield_id="org/words", messages=messages, params={})
    assert answer.violation is None
    with pytest.raises(NotFoundError, match="'absent' is not registered"):
        await library.safety.run_shield(shield_id="absent", messages=messages, params={})
    with pytest.raises(BadRequestError, match="there is no shield provider 'nobody'; providers are"):
        await library.shields.register(shield_id="x", provider_id="nobody")


async def test_shields_that_need_no_registration(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/shields/pii")).json() == {
        "identifier": "pii",
        "provider_resource_id": "pii",
        "provider_id": "pii",
        "type": "shield",
    }
    assert (await run(client, "pii", "hello")).json() == {}
    answer = (await run(client, "pii", "mail a@example.org")).json()["violation"]
    assert (answer["violation_level"], answer["metadata"]["entities"]) == ("error", {"email": 1})
    assert (await run(client, "code-scanner", "import os\nos.system(x + y)")).json()["violation"] is not None


async def test_a_registration_goes_before_what_is_built_in(client: httpx.AsyncClient) -> None:
    mine = {"shield_id": "pii", "params": {"level": "warn", "entities": ["email"]}}
    assert (await register(client, **mine)).status_code == 200
    assert (await register(client, **mine)).status_code == 200
    assert len((await client.get("/v1/shields")).json()["data"]) == 2
    answer = (await run(client, "pii", "a@example.org 8.8.8.8")).json()["violation"]
    assert (answer["violation_level"], answer["metadata"]["entities"]) == ("warn", {"email": 1})
    once = (await run(client, "pii", "a@example.org 8.8.8.8", level="info", entities=None)).json()[
        "violation"
    ]
    assert (once["violation_level"], once["metadata"]["entities"]) == ("info", {"email": 1})
    again = (await run(client, "pii", "a@example.org 8.8.8.8")).json()["violation"]
    assert again == answer
    conflict = await register(client, **mine | {"params": None})
    assert (conflict.status_code, conflict.json()["title"]) == (400, "Already Registered")


@pytest.mark.parametrize(
    ("shield_id", "provider_shield_id", "provider_id"),
    [
        ("pii", None, "pii"),
        ("my-regex", None, "regex"),
        ("meta-llama/Llama-Guard-3-8B", "tiny", "llama-guard"),
        ("meta-llama/Llama-Prompt-Guard-2-86M", "tiny", "prompt-guard"),
        ("inline::code-scanner", None, "code-scanner"),
    ],
)
async def test_the_name_tells_the_provider(
    client: httpx.AsyncClient, shield_id: str, provider_shield_id: str | None, provider_id: str
) -> None:
    params = SECRET_WORD if provider_id == "regex" else None
    answer = await register(client, shield_id=shield_id, provider_shield_id=provider_shield_id, params=params)
    assert answer.json()["provider_id"] == provider_id
    assert (await client.get(f"/v1/shields/{shield_id}")).json() == answer.json()


@pytest.mark.parametrize(
    ("request_", "detail"),
    [
        (
            {"shield_id": "guardian"},
            "does not say what checks it: set provider_id; providers are code-scanner",
        ),
        ({"shield_id": "happiify"}, "does not say what checks it"),
        ({"shield_id": "llama-prompt-guard-pii-regex"}, "does not say what checks it"),
        (
            {"shield_id": "pii", "params": {"entities": "email"}},
            "params.entities: input should be a valid list",
        ),
        (
            {"shield_id": "pii", "params": {"kinds": []}},
            "there is no such parameter; there are entities, level",
        ),
        (
            {"shield_id": "regex", "params": {"patterns": [{"pattern": "("}]}},
            "is not a pattern of RE2 (missing )",
        ),
        ({"shield_id": "llama-guard"}, "there is no model 'llama-guard'"),
        ({"shield_id": "llama-guard", "provider_shield_id": "org/embedder"}, "is an embedding model"),
        (
            {"shield_id": "prompt-guard", "provider_shield_id": "tiny", "params": {"threshold": 7}},
            "threshold",
        ),
        ({"shield_id": " ", "provider_id": "pii"}, "at least one visible character"),
        ({"shield_id": "x" * 10_000, "provider_id": "pii"}, "at most"),
    ],
)
async def test_registrations_that_are_refused(
    client: httpx.AsyncClient, request_: dict[str, Any], detail: str
) -> None:
    answer = await register(client, **request_)
    assert answer.status_code == 400
    assert detail in answer.json()["detail"]
    assert len((await client.get("/v1/shields")).json()["data"]) == 2


async def test_runs_that_are_refused(client: httpx.AsyncClient) -> None:
    for shield_id, status, detail in (
        ("absent", 404, "shield 'absent' is not registered"),
        ("a\0b", 400, "U+0000"),
        ("pii", 400, "messages is empty"),
    ):
        answer = await run(client, shield_id)
        assert (answer.status_code, answer.json()["status"]) == (status, status)
        assert detail in answer.json()["detail"]
    assert (await run(client, "pii", "hi", colour="red")).status_code == 400
    body = '{"shield_id": "pii", "params": {}, "messages": [{"role": "user", "content": "\\ud800"}]}'
    assert (await client.post("/v1/safety/run-shield", content=body)).status_code == 400


async def test_shields_over_models(client: httpx.AsyncClient, fake: FakeInference, stack: Stack) -> None:
    await register(client, shield_id="llama-guard", provider_shield_id="tiny")
    fake.script = [start(), progress("unsafe\nS10"), complete()]
    violation = (await run(client, "llama-guard", "something hateful")).json()["violation"]
    assert violation["metadata"]["categories"] == ["Hate"]
    assert violation["user_message"] == "I can't answer that. Can I help with something else?"
    fake.script = [start(), progress("perhaps"), complete()]
    answer = await run(client, "llama-guard", "something")
    assert (answer.status_code, "gave no verdict" in answer.json()["detail"]) == (502, True)
    await stack.model_status.set("tiny", "ready", None, {"guard_prompt": "llama-3", "session": "s"})
    fake.script = [CompletionResponseStreamChunk(delta="safe", stop_reason="end_of_turn")]
    assert (await run(client, "llama-guard", "something")).json() == {}
    await stack.model_status.set("tiny", "loading", None, {"session": "s"})
    assert (await run(client, "llama-guard", "something")).status_code == 503


async def test_all_kinds_of_messages(client: httpx.AsyncClient) -> None:
    image = {"type": "image", "image": {"url": {"uri": "data:image/png;base64,AAAA"}}}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [image, {"type": "text", "text": "look"}], "context": "nothing"},
        {"role": "assistant", "content": "", "stop_reason": "end_of_turn", "tool_calls": [
            {"call_id": "1", "tool_name": "mail", "arguments": "not JSON, a@example.org"}
        ]},
        {"role": "tool", "call_id": "1", "content": {"type": "text", "text": "sent"}},
    ]  # fmt: skip
    body = {"shield_id": "pii", "messages": messages, "params": {}}
    answer = await client.post("/v1/safety/run-shield", json=body)
    assert answer.json()["violation"]["metadata"]["entities"] == {"email": 1}


async def test_hostile_bodies_are_answered_in_time(client: httpx.AsyncClient) -> None:
    await register(client, shield_id="my-regex", params={"patterns": [{"pattern": "(a+)+$"}]})
    started = time.monotonic()
    assert (await run(client, "my-regex", "a" * 100_000)).json()["violation"] is not None
    for shield_id in ("pii", "my-regex", "code-scanner"):
        assert (await run(client, shield_id, "((((" * 250_000)).json() == {}
        assert (await run(client, shield_id, "\0" * 1000)).json() == {}
        most = 1_000_000 if shield_id == "code-scanner" else 10_000_000
        assert (await run(client, shield_id, "word " * (most // 5))).json() == {}
        answer = await run(client, shield_id, "word " * (most // 5), "x")
        assert (answer.status_code, answer.json()["title"]) == (413, "Content Too Large")
    assert time.monotonic() - started < 40
