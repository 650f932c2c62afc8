from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from stack.context import Stack
from stack.errors import ContextTooLong, Overloaded
from stack.schemas.content import ToolCall
from stack.schemas.inference import CompletionResponseStreamChunk, EmbeddingsResponse
from tests.api.asgi import Exchange
from tests.api.fake import FakeInference, complete, progress, start, tool
from tests.store.examples import model

CHAT = "/v1/inference/chat-completion"


def chat(**changes: Any) -> dict[str, Any]:
    return {"model_id": "tiny", "messages": [{"role": "user", "content": "hi"}], **changes}


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.text.endswith("\n\n")
    frames = answer.text.removesuffix("\n\n").split("\n\n")
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


async def test_chat(client: httpx.AsyncClient, fake: FakeInference) -> None:
    fake.script = [start(), progress("Hel"), progress("lo"), complete()]
    answer = await client.post(CHAT, json=chat())
    assert answer.json() == {
        "completion_message": {"role": "assistant", "content": "Hello", "stop_reason": "end_of_turn"},
        "metrics": [{"metric": "total_tokens", "value": 7}],
    }
    assert fake.closed == 1


async def test_streamed_chat(client: httpx.AsyncClient, fake: FakeInference) -> None:
    fake.script = [start(), progress("Hel"), progress("lo\n"), complete()]
    streamed = events(await client.post(CHAT, json=chat(stream=True)))
    types = [event["event"]["event_type"] for event in streamed]
    assert types == ["start", "progress", "progress", "complete"]
    assert "".join(event["event"]["delta"]["text"] for event in streamed) == "Hello\n"
    assert streamed[-1]["event"]["stop_reason"] == "end_of_turn"
    assert fake.closed == 1


async def test_the_body_decides_what_is_streamed(client: httpx.AsyncClient, fake: FakeInference) -> None:
    fake.script = [start(), complete()]
    answer = await client.post(CHAT, json=chat(), headers={"accept": "text/event-stream"})
    assert answer.headers["content-type"] == "application/json"


async def test_tool_calls_are_collected(client: httpx.AsyncClient, fake: FakeInference) -> None:
    call = ToolCall(call_id="1", tool_name="add", arguments={"a": 1}, arguments_json='{"a": 1}')
    fake.script = [start(), tool("", "started"), tool(call), complete("end_of_message")]
    message = (await client.post(CHAT, json=chat())).json()["completion_message"]
    assert message["tool_calls"] == [call.model_dump(mode="json")]
    assert (message["content"], message["stop_reason"]) == ("", "end_of_message")


async def test_completion(client: httpx.AsyncClient, fake: FakeInference) -> None:
    fake.script = [
        CompletionResponseStreamChunk(delta="a"),
        CompletionResponseStreamChunk(delta="b", stop_reason="out_of_tokens"),
    ]
    request = {"model_id": "tiny", "content": "hi"}
    answer = await client.post("/v1/inference/completion", json=request)
    assert answer.json() == {"content": "ab", "stop_reason": "out_of_tokens"}
    streamed = events(await client.post("/v1/inference/completion", json={**request, "stream": True}))
    assert streamed == [{"delta": "a"}, {"delta": "b", "stop_reason": "out_of_tokens"}]


async def test_embeddings(client: httpx.AsyncClient, fake: FakeInference) -> None:
    fake.script = [EmbeddingsResponse(embeddings=[[0.5, -1.0]])]
    request = {"model_id": "org/embedder", "contents": ["x"]}
    answer = await client.post("/v1/inference/embeddings", json=request)
    assert answer.json() == {"embeddings": [[0.5, -1.0]]}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_early_error_keeps_its_status(
    client: httpx.AsyncClient, fake: FakeInference, stream: bool
) -> None:
    fake.script = [ContextTooLong(9000, 2048)]
    answer = await client.post(CHAT, json=chat(stream=stream))
    assert (answer.status_code, answer.json()) == (
        400,
        {
            "status": 400,
            "title": "Context Too Long",
            "detail": "the prompt has 9000 tokens, the model takes 2048",
        },
    )
    assert fake.closed == 1


async def test_a_late_error_is_an_event(client: httpx.AsyncClient, fake: FakeInference) -> None:
    fake.script = [start(), progress("a"), ZeroDivisionError("inside /opt/secret")]
    *chunks, error = events(await client.post(CHAT, json=chat(stream=True)))
    assert len(chunks) == 2
    assert error.keys() == {"error"}
    assert "secret" not in error["error"]["message"]
    fake.script = [start(), Overloaded("too many requests wait")]
    *_, error = events(await client.post(CHAT, json=chat(stream=True)))
    assert error == {"error": {"message": "too many requests wait"}}


async def test_overload_says_when_to_come_back(client: httpx.AsyncClient, fake: FakeInference) -> None:
    fake.script = [Overloaded("too many requests wait", 3)]
    answer = await client.post(CHAT, json=chat(stream=True))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")


async def test_an_answer_without_an_end_is_an_error(client: httpx.AsyncClient, fake: FakeInference) -> None:
    fake.script = [start(), progress("a")]
    answer = await client.post(CHAT, json=chat())
    assert (answer.status_code, "broke off" in answer.json()["detail"]) == (500, True)


async def test_unknown_and_unsuitable_models(client: httpx.AsyncClient) -> None:
    unknown = await client.post(CHAT, json=chat(model_id="nobody"))
    assert (unknown.status_code, unknown.json()["detail"]) == (404, "model 'nobody' is not registered")
    embedder = await client.post(CHAT, json=chat(model_id="org/embedder"))
    assert (embedder.status_code, "is an embedding model" in embedder.json()["detail"]) == (400, True)
    text = await client.post("/v1/inference/embeddings", json={"model_id": "tiny", "contents": ["x"]})
    assert (text.status_code, "is a text model" in text.json()["detail"]) == (400, True)


async def test_models_that_are_not_ready(client: httpx.AsyncClient, stack: Stack) -> None:
    await stack.models.register(model("new"))
    answer = await client.post(CHAT, json=chat(model_id="new"))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "pending" in answer.json()["detail"]
    await stack.model_status.set("new", "loading", "fetching weights, 40%", {"session": "s"})
    answer = await client.post(CHAT, json=chat(model_id="new"))
    assert answer.json()["detail"] == "model 'new' is not ready yet, it is loading: fetching weights, 40%"
    await stack.model_status.set("new", "failed", "no weights in the folder", {"session": "s"})
    answer = await client.post(CHAT, json=chat(model_id="new"))
    assert (answer.status_code, "retry-after" in answer.headers) == (503, False)
    assert "no weights in the folder" in answer.json()["detail"]


async def test_deprecated_tool_fields_are_merged(client: httpx.AsyncClient, fake: FakeInference) -> None:
    fake.script = [start(), complete()]
    config = {"system_message_behavior": "replace"}
    request = chat(tool_choice="required", tool_prompt_format="json", tool_config=config)
    assert (await client.post(CHAT, json=request)).status_code == 200
    got = fake.requests[-1]
    assert (got.tool_choice, got.tool_prompt_format) == (None, None)
    assert got.tool_config.model_dump() == {
        "tool_choice": "required",
        "tool_prompt_format": "json",
        "system_message_behavior": "replace",
    }
    same = chat(tool_choice="none", tool_config={"tool_choice": "none"})
    assert (await client.post(CHAT, json=same)).status_code == 200
    assert fake.requests[-1].tool_config.tool_choice == "none"


async def test_deprecated_tool_fields_may_not_contradict(client: httpx.AsyncClient) -> None:
    request = chat(tool_choice="none", tool_config={"tool_choice": "required"})
    answer = await client.post(CHAT, json=request)
    assert answer.status_code == 400
    assert "tool_choice is 'none', but tool_config.tool_choice is 'required'" in answer.json()["detail"]


@pytest.mark.parametrize("header", ["[1]", "nonsense", "null", '{"a": NaN}', '"x"'])
async def test_provider_data_is_an_object(client: httpx.AsyncClient, header: str) -> None:
    answer = await client.post(CHAT, json=chat(), headers={"X-LlamaStack-Provider-Data": header})
    assert (answer.status_code, "not a JSON object" in answer.json()["detail"]) == (400, True)


async def test_any_client_version_is_served(client: httpx.AsyncClient, fake: FakeInference) -> None:
    fake.script = [start(), complete()]
    headers = {"X-LlamaStack-Client-Version": "99.0", "X-LlamaStack-Provider-Data": "{}"}
    assert (await client.post(CHAT, json=chat(), headers=headers)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_frees_the_model(
    app: FastAPI, fake: FakeInference, stream: bool
) -> None:
    fake.script = [start(), progress("a"), 60.0, complete()]
    exchange = Exchange(app, "POST", CHAT, chat(stream=stream))
    await fake.waiting.wait()
    if stream:
        await exchange.wait_for_bodies(1)
    assert fake.closed == 0
    exchange.disconnect()
    await exchange.task
    assert fake.closed == 1
    assert b"error" not in b"".join(exchange.bodies)
