"""What the server records of itself."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from stack.context import Stack
from stack.schemas.inference import MetricInResponse
from tests.api.fake import FakeInference, complete, progress, start


async def spans_of(client: httpx.AsyncClient, trace_id: str, count: int = 1) -> list[dict[str, Any]]:
    """Once there are so many."""
    async with asyncio.timeout(10):
        while True:
            trace = await client.get(f"/v1/telemetry/traces/{trace_id}")
            if trace.status_code == 200:
                root = trace.json()["root_span_id"]
                tree = (await client.post(f"/v1/telemetry/spans/{root}/tree", json={})).json()["data"]
                if len(tree) >= count:
                    return list(tree.values())
            await asyncio.sleep(0.05)


async def test_a_request_is_a_trace(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/models/tiny")
    (span,) = await spans_of(client, answer.headers["x-trace-id"])
    assert span["name"] == "GET /v1/models/{model_id}"
    assert span["attributes"] == {
        "http.request.method": "GET",
        "url.path": "/v1/models/tiny",
        "http.route": "/v1/models/{model_id}",
        "http.response.status_code": 200,
    }
    assert span["status"] == "ok"
    missing = await client.get("/v1/models/none")
    (span,) = await spans_of(client, missing.headers["x-trace-id"])
    assert (span["attributes"]["http.response.status_code"], span["status"]) == (404, "ok")


async def test_a_callers_trace_goes_on(client: httpx.AsyncClient) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    answer = await client.get("/v1/models", headers={"traceparent": f"00-{trace}-{parent}-01"})
    assert answer.headers["x-trace-id"] == trace
    (span,) = await spans_of(client, trace)
    assert span["parent_span_id"] == parent
    unsampled = await client.get("/v1/models", headers={"traceparent": f"00-{trace[::-1]}-{parent}-00"})
    assert unsampled.headers["x-trace-id"] == trace[::-1]
    again = await client.get("/v1/models", headers={"traceparent": "00-nonsense-01"})
    assert await spans_of(client, again.headers["x-trace-id"])
    assert (await client.get(f"/v1/telemetry/traces/{trace[::-1]}")).status_code == 404


async def test_requests_at_once_have_traces_of_their_own(client: httpx.AsyncClient, stack: Stack) -> None:
    answers = await asyncio.gather(*(client.get(f"/v1/models/m{n}") for n in range(64)))
    traces = [answer.headers["x-trace-id"] for answer in answers]
    assert len(set(traces)) == 64
    for number, trace in enumerate(traces):
        (span,) = await spans_of(client, trace)
        assert span["attributes"]["url.path"] == f"/v1/models/m{number}"
    assert await stack.telemetry.query_traces(_all()) != []


async def test_a_chat_has_a_span(client: httpx.AsyncClient, fake: FakeInference) -> None:
    body = {"model_id": "tiny", "messages": [{"role": "user", "content": "a secret"}]}
    end = complete()
    usage = [MetricInResponse(metric=name, value=7) for name in ("prompt_tokens", "completion_tokens")]
    fake.script = [start(), progress("hello"), end.model_copy(update={"metrics": usage})]
    for stream in (False, True):
        answer = await client.post("/v1/inference/chat-completion", json=body | {"stream": stream})
        assert answer.status_code == 200
        root, chat = await spans_of(client, answer.headers["x-trace-id"], 2)
        assert (chat["name"], chat["parent_span_id"]) == ("chat tiny", root["span_id"])
        attributes = chat["attributes"]
        assert attributes["gen_ai.request.model"] == "tiny"
        assert attributes["gen_ai.usage.output_tokens"] == 7
        assert attributes["gen_ai.response.finish_reasons"] == ["stop"]
        assert "secret" not in str(attributes)


def _all() -> Any:
    from stack.schemas.telemetry import QueryTracesRequest

    return QueryTracesRequest()


@pytest.mark.parametrize("path", ["/v1/telemetry/traces/x", "/v1/health"])
async def test_who_looks_on_is_not_recorded(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert len(answer.headers["x-trace-id"]) == 32
    await asyncio.sleep(0.5)
    assert (await client.get(f"/v1/telemetry/traces/{answer.headers['x-trace-id']}")).status_code == 404
