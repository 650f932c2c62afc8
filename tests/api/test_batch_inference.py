"""Batches of completions and chats over HTTP, answered by a model that the test writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Any

import httpx
import pytest

from stack.batch import batches, shared
from stack.batch.answers import answering
from stack.batch.job import Batch, run
from stack.batch.parts import Row
from stack.context import Stack
from stack.engine.base import Priority
from stack.errors import ContextTooLong, Overloaded
from stack.jobs.context import JobContext
from stack.schemas.inference import CompletionResponseStreamChunk, MetricInResponse
from stack.store.jobs import Lease
from tests.api.fake import FakeInference, complete, progress, start


class Echo(FakeInference):
    """Says what it was told, some answers later than others; what begins with `long` is too long."""

    refusals = 0

    def __init__(self) -> None:
        super().__init__()
        self.priorities: set[Priority] = set()

    async def completion(self, request: Any, priority: Priority = Priority.INTERACTIVE) -> AsyncIterator[Any]:  # type: ignore[override]
        self.priorities.add(priority)
        self.requests.append(request)
        if self.refusals:
            self.refusals -= 1
            raise Overloaded("busy")
        if request.content.startswith("long"):
            raise ContextTooLong(9000, 2048)
        await asyncio.sleep(0.002 * (len(request.content) % 3))
        metrics = [MetricInResponse(metric="total_tokens", value=3)]
        yield CompletionResponseStreamChunk(
            delta=request.content.upper(), stop_reason="end_of_turn", metrics=metrics
        )

    async def chat_completion(  # type: ignore[override]
        self, request: Any, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[Any]:
        self.priorities.add(priority)
        self.requests.append(request)
        yield start()
        yield progress(request.messages[-1].content.upper())
        yield complete()


@pytest.fixture
def fake() -> Echo:
    return Echo()


def texts(batch: list[Row]) -> list[str]:
    return [item["content"] for item in batch]


async def post(client: httpx.AsyncClient, operation: str, **body: Any) -> Any:
    return await client.post(f"/v1/batch-inference/{operation}", json={"model": "tiny"} | body)


async def test_completions_in_order(client: httpx.AsyncClient, fake: Echo) -> None:
    items = [f"a{'b' * n}" for n in range(100)]
    params = {"strategy": {"type": "greedy"}, "max_tokens": 5}
    answer = await post(
        client, "completion", content_batch=items, sampling_params=params, logprobs={"top_k": 1}
    )
    assert answer.status_code == 200
    assert texts(answer.json()["batch"]) == [item.upper() for item in items]
    assert fake.priorities == {Priority.BATCH}
    request = fake.requests[0]
    assert (request.sampling_params.max_tokens, request.logprobs.top_k, request.stream) == (5, 1, False)


async def test_chats(client: httpx.AsyncClient, fake: Echo) -> None:
    batch = [[{"role": "user", "content": word}] for word in ("one", "two")]
    tools = [{"tool_name": "add", "description": "adds"}]
    answer = await post(client, "chat-completion", messages_batch=batch, tools=tools, tool_choice="required")
    messages = [item["completion_message"] for item in answer.json()["batch"]]
    assert [message["content"] for message in messages] == ["ONE", "TWO"]
    assert answer.json()["batch"][0]["metrics"] == [{"metric": "total_tokens", "value": 7}]
    request = fake.requests[0]
    assert (request.tool_config.tool_choice, request.tool_choice) == ("required", None)
    assert request.tools[0].tool_name == "add"


async def test_one_bad_item_is_its_own_error(client: httpx.AsyncClient) -> None:
    answer = await post(client, "completion", content_batch=["a", "long one", "c"])
    assert answer.status_code == 200
    batch = answer.json()["batch"]
    assert texts(batch) == ["A", "", "C"]
    assert batch[1]["metrics"] == [
        {"metric": "error", "value": 400, "unit": "the prompt has 9000 tokens, the model takes 2048"}
    ]


async def test_all_bad_is_the_requests_error(client: httpx.AsyncClient) -> None:
    answer = await post(client, "completion", content_batch=["long one", "long two"])
    assert (answer.status_code, answer.json()["detail"]) == (
        400,
        "the prompt has 9000 tokens, the model takes 2048",
    )


async def test_an_overloaded_model_is_waited_for(client: httpx.AsyncClient, fake: Echo) -> None:
    fake.refusals = 3
    answer = await post(client, "completion", content_batch=["a", "b"])
    assert texts(answer.json()["batch"]) == ["A", "B"]


async def test_nothing(client: httpx.AsyncClient) -> None:
    assert (await post(client, "completion", content_batch=[])).json() == {"batch": []}
    assert (await post(client, "chat-completion", messages_batch=[])).json() == {"batch": []}


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({"model": "none", "content_batch": ["a"]}, 404, "model 'none' is not registered"),
        ({"model": "org/embedder", "content_batch": ["a"]}, 400, "is an embedding model"),
        ({"content_batch": "a"}, 400, "content_batch"),
        ({"content_batch": ["a"], "sampling_params": {"strategy": {"type": "x"}}}, 400, "sampling_params"),
        ({"content_batch": ["a"] * (batches.MAX_ITEMS + 1)}, 400, "at most 100000 items"),
        ({"content_batch": ["a"], "more": 1}, 400, "more"),
    ],
)
async def test_bad_requests(client: httpx.AsyncClient, body: Any, status: int, detail: str) -> None:
    answer = await post(client, "completion", **body)
    assert (answer.status_code, detail in answer.json()["detail"]) == (status, True), answer.json()


async def test_an_empty_conversation_is_its_own_error(client: httpx.AsyncClient) -> None:
    good = [{"role": "user", "content": "one"}]
    batch = (await post(client, "chat-completion", messages_batch=[[], good])).json()["batch"]
    assert batch[0]["metrics"][0]["unit"].startswith("messages: List should have at least 1 item")
    assert batch[1]["completion_message"]["content"] == "ONE"


class Runner:
    """Works on jobs as their processes do."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    async def work(self) -> str:
        (job,) = [job for job in await self.stack.jobs.list(kind="batch") if not job.ended]
        lease: Lease = await self.stack.jobs.claim(job.id, "test")
        context = JobContext(self.stack.settings, self.stack.database, lease)
        asked = Batch.model_validate(job.request).asked
        result = await run(context, lambda: answering(lambda: nullcontext(self.stack), asked))
        await self.stack.jobs.finish(lease, result)
        return job.id


async def test_many_become_a_job(
    client: httpx.AsyncClient, stack: Stack, monkeypatch: pytest.MonkeyPatch, fake: Echo
) -> None:
    """The request is told to come again while the job works; then it gets the answers, in order."""
    monkeypatch.setattr(shared, "WAIT_S", 0.2)
    items = ["long" if n == 7 else f"item {n}" for n in range(batches.DIRECT + 1)]
    answer = await post(client, "completion", content_batch=items)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert "send the same request again" in answer.json()["detail"]
    assert fake.requests == []
    job_id = await Runner(stack).work()
    assert job_id in answer.json()["detail"]
    answer = await post(client, "completion", content_batch=items)
    assert answer.status_code == 200
    batch = answer.json()["batch"]
    assert texts(batch) == [f"ITEM {n}" if n != 7 else "" for n in range(len(items))]
    assert batch[7]["metrics"][0]["value"] == 400
    assert (await stack.jobs.get(job_id)).result == {"parts": 201, "rows": 201, "failed": 1}
    # Another request is another job.
    assert (await post(client, "completion", content_batch=[*items, "one more"])).status_code == 503
    assert len(await stack.jobs.list(kind="batch")) == 2


async def jobs(stack: Stack, count: int) -> list[str]:
    """The ids of all batch jobs, once there are so many."""
    for _ in range(100):
        if len(found := await stack.jobs.list(kind="batch")) == count:
            break
        await asyncio.sleep(0.05)
    return [job.id for job in found]


async def test_a_cancelled_job_is_told_and_then_done_again(
    client: httpx.AsyncClient, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "WAIT_S", 5.0)
    items = [f"item {n}" for n in range(batches.DIRECT + 1)]
    waiting = asyncio.create_task(post(client, "completion", content_batch=items))
    (job_id,) = await jobs(stack, 1)
    await stack.jobs.cancel(job_id)
    answer = await waiting
    assert (answer.status_code, "is cancelled" in answer.json()["detail"]) == (500, True)
    again = asyncio.create_task(post(client, "completion", content_batch=items))
    await jobs(stack, 2)
    await Runner(stack).work()
    assert texts((await again).json()["batch"])[:2] == ["ITEM 0", "ITEM 1"]


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({}, 400, "asked"),
        (
            {"asked": {"operation": "completion", "options": {"model_id": "tiny"}}},
            400,
            "name an uploaded file",
        ),
        ({"key": "none.jsonl"}, 404, "there is no file 'none.jsonl'"),
        ({"asked": {"operation": "completion", "options": {}}}, 400, "model_id"),
        ({"asked": {"operation": "chat-completion", "options": {"model_id": "none"}}}, 404, "'none'"),
        (
            {"asked": {"operation": "completion", "options": {"model_id": "tiny", "tools": []}}},
            400,
            "tools: Extra inputs",
        ),
    ],
)
async def test_bad_batches_of_files(client: httpx.AsyncClient, body: Any, status: int, detail: str) -> None:
    good = {"operation": "completion", "options": {"model_id": "tiny"}}
    file = {} if detail == "name an uploaded file" else {"bucket": "batches", "key": "in.jsonl"}
    asked = {} if not body else {"asked": good}
    answer = await client.post("/v1/jobs/batch", json=file | asked | body)
    assert (answer.status_code, detail in answer.json()["detail"]) == (status, True), answer.json()


async def test_results_of_a_job_that_has_none(client: httpx.AsyncClient, stack: Stack) -> None:
    job = await stack.jobs.submit("batch", {})
    answer = await client.get(f"/v1/jobs/{job.id}/results")
    assert (answer.status_code, "is scheduled" in answer.json()["detail"]) == (400, True)
    assert (await client.get("/v1/jobs/none/results")).status_code == 404
