"""Telemetry over HTTP, with the client's library."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from llama_stack_client import AsyncLlamaStackClient, BadRequestError, NotFoundError

from stack.context import Stack

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
async def library(app: FastAPI) -> AsyncIterator[AsyncLlamaStackClient]:
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://stack")
    async with AsyncLlamaStackClient(base_url="http://stack", http_client=http) as library:
        yield library


async def log(library: AsyncLlamaStackClient, span: str, trace: str = "t", at: int = 0, **event: Any) -> None:
    body: Any = {
        "trace_id": trace,
        "span_id": span,
        "timestamp": (NOW + timedelta(seconds=at)).isoformat(),
        "attributes": event.pop("attributes", None),
    }
    if "payload" in event:
        body["type"] = "structured_log"
    await library.telemetry.log_event(event=body | event, ttl_seconds=event.pop("ttl_seconds", 600))


async def turn(library: AsyncLlamaStackClient, trace: str, session: str, answer: str) -> None:
    """A trace as an agent's client might log it: a turn, and below it a step that answers."""
    start = {"type": "span_start", "name": "turn"}
    await log(library, "turn", trace, payload=start, attributes={"session_id": session})
    step = {"type": "span_start", "name": "inference", "parent_span_id": "turn"}
    await log(library, "step", trace, 1, payload=step, attributes={"input": f"to {session}", "tokens": 7})
    await log(
        library, "step", trace, 2, payload={"type": "span_end", "status": "ok"}, attributes={"output": answer}
    )
    await log(library, "turn", trace, 3, payload={"type": "span_end", "status": "ok"})


async def test_events_become_traces(library: AsyncLlamaStackClient, client: httpx.AsyncClient) -> None:
    await turn(library, "t1", "s1", "hello")
    await turn(library, "t2", "s2", "bye")
    trace = await library.telemetry.get_trace("t1")
    assert (trace.root_span_id, trace.start_time, trace.end_time) == ("turn", NOW, NOW + timedelta(seconds=3))
    span: Any = await library.telemetry.get_span("step", trace_id="t1")
    assert (span.name, span.parent_span_id) == ("inference", "turn")
    assert span.attributes == {"input": "to s1", "tokens": 7, "output": "hello"}
    tree = await library.telemetry.get_span_tree("turn", attributes_to_return=["output"], max_depth=2)
    assert {name: each.attributes for name, each in tree.items()} == {"turn": {}, "step": {"output": "bye"}}
    found = await library.telemetry.query_traces(
        attribute_filters=[{"key": "session_id", "op": "eq", "value": "s1"}]
    )
    assert [each.trace_id for each in found] == ["t1"]
    ordered = await library.telemetry.query_traces(order_by=["-trace_id"], limit=1, offset=1)
    assert [each.trace_id for each in ordered] == ["t1"]
    spans = await library.telemetry.query_spans(
        attribute_filters=[{"key": "session_id", "op": "eq", "value": "s2"}],
        attributes_to_return=["input", "output"],
    )
    assert [each.attributes for each in spans] == [{"input": "to s2", "output": "bye"}]
    metric = {"type": "metric", "metric": "score", "value": 0.9, "unit": "1"}
    await log(library, "step", "t2", 4, **metric)
    await log(library, "step", "t2", 5, type="unstructured_log", message="well said", severity="info")
    events = (await client.get("/v1/telemetry/traces/t2/events", params={"span_id": "step"})).json()["data"]
    assert [each.get("message", each.get("value")) for each in events] == [0.9, "well said"]
    found = await library.telemetry.query_traces(
        attribute_filters=[{"key": "score", "op": "gt", "value": 0.5}]
    )
    assert [each.trace_id for each in found] == ["t2"]


async def test_spans_become_a_dataset(library: AsyncLlamaStackClient) -> None:
    for number in range(3):
        await turn(library, f"t{number}", "s", f"answer {number}")
    request: Any = {
        "attribute_filters": [{"key": "session_id", "op": "eq", "value": "s"}],
        "attributes_to_save": ["input", "output", "tokens"],
        "dataset_id": "turns",
    }
    await library.telemetry.save_spans_to_dataset(**request)
    rows = (await library.datasets.iterrows("turns")).data
    assert [row["output"] for row in rows] == ["answer 0", "answer 1", "answer 2"]
    assert rows[0] == {
        "trace_id": "t0", "span_id": "step", "parent_span_id": "turn", "name": "inference", "status": "ok",
        "start_time": (NOW + timedelta(seconds=1)).isoformat(),
        "end_time": (NOW + timedelta(seconds=2)).isoformat(),
        "input": "to s", "output": "answer 0", "tokens": 7, "question": "to s", "answer": "answer 0",
    }  # fmt: skip
    await library.telemetry.save_spans_to_dataset(**request)
    assert len((await library.datasets.iterrows("turns", limit=100)).data) == 6
    with pytest.raises(BadRequestError, match="no span meets"):
        await library.telemetry.save_spans_to_dataset(**request | {"attributes_to_save": ["nothing"]})


async def test_ten_thousand_at_once(app: FastAPI, stack: Stack) -> None:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://stack", timeout=120) as client:

        async def one(number: int) -> int:
            event = {
                "type": "structured_log", "trace_id": f"t{number % 100}", "span_id": f"s{number}",
                "timestamp": NOW.isoformat(), "payload": {"type": "span_start", "name": "n"},
                "attributes": {"number": number},
            }  # fmt: skip
            answer = await client.post("/v1/telemetry/events", json={"event": event, "ttl_seconds": 60})
            return answer.status_code

        statuses = await asyncio.gather(*map(one, range(10_000)))
    assert set(statuses) == {200}
    assert sum([len(page) async for page in stack.telemetry.spans.pages([], 1000)]) == 10_000


async def test_bad_requests(library: AsyncLlamaStackClient, client: httpx.AsyncClient) -> None:
    await turn(library, "t1", "s1", "hello")
    for missing in (
        library.telemetry.get_trace("none"),
        library.telemetry.get_span("none", trace_id="t1"),
        library.telemetry.get_span_tree("none"),
    ):
        with pytest.raises(NotFoundError):
            await missing
    assert (
        await library.telemetry.query_traces(attribute_filters=[{"key": "none", "op": "eq", "value": 1}])
        == []
    )
    for query, reason in (
        ({"order_by": ["start_time; DROP TABLE spans"]}, "order_by"),
        ({"limit": -1}, "limit"),
        ({"offset": -1}, "offset"),
        ({"attribute_filters": [{"key": "x", "op": "like", "value": 1}]}, "op"),
        ({"attribute_filters": [{"key": "x", "op": "gt", "value": True}]}, "gt"),
        ({"attribute_filters": [{"key": "x", "op": "eq", "value": 1}] * 21}, "21 conditions"),
    ):
        answer = await client.post("/v1/telemetry/traces", json=query)
        assert (answer.status_code, reason in answer.json()["detail"]) == (400, True), answer.text
    large = {"text": "x" * 2**20}
    await log(library, "large", "t1", payload={"type": "span_start", "name": "n"}, attributes=large)
    span: Any = await library.telemetry.get_span("large", trace_id="t1")
    assert span.attributes == large
    answer = await client.post("/v1/telemetry/events", json={"event": {"type": "none"}, "ttl_seconds": 1})
    assert answer.status_code == 400


async def test_a_store_that_is_away_fails_nothing_else(
    app: FastAPI, stack: Stack, client: httpx.AsyncClient
) -> None:
    """Its file is no database."""
    (stack.settings.home / "telemetry.db").write_bytes(b"no database at all" * 1000)
    body = {
        "event": {
            "type": "structured_log", "trace_id": uuid4().hex, "span_id": "s", "timestamp": NOW.isoformat(),
            "payload": {"type": "span_start", "name": "n"},
        },
        "ttl_seconds": 60,
    }  # fmt: skip
    assert (await client.post("/v1/telemetry/events", json=body)).status_code in (500, 503)
    assert (await client.get("/v1/models")).status_code == 200
