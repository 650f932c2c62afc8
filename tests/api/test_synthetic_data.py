"""Generation of training data over HTTP, with a model that the test writes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import nullcontext
from itertools import count
from typing import Any

import httpx
import pytest

from stack.batch import shared
from stack.context import Stack
from stack.engine.base import Priority
from stack.errors import ContextTooLong
from stack.jobs.context import JobContext
from stack.schemas.inference import TokenLogProbs
from stack.settings import Settings
from stack.synthetic.generate import generating
from stack.synthetic.synthesis import DIRECT, Synthesis, run
from tests.api.fake import FakeInference, complete, progress, start


class Poet(FakeInference):
    """Says something else each time, less and less likely; twice the same where it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = count()

    async def chat_completion(  # type: ignore[override]
        self, request: Any, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[Any]:
        self.requests.append(request)
        said = request.messages[-1].content
        if said == "long":
            raise ContextTooLong(9, 8)
        number = next(self.numbers)
        text = "the same" if said == "repeat" else f"answer {number} to {said}"
        logprobs = [TokenLogProbs(logprobs_by_token={"x": -float(number)}) for _ in range(3)]
        yield start()
        yield progress(text, logprobs=logprobs)
        yield complete()


@pytest.fixture
def fake() -> Poet:
    return Poet()


def users(*texts: str) -> list[Any]:
    return [{"role": "user", "content": text} for text in texts]


async def generate(client: httpx.AsyncClient, dialogs: Any, function: str = "none", **more: Any) -> Any:
    body = {"dialogs": dialogs, "filtering_function": function} | more
    return await client.post("/v1/synthetic-data-generation/generate", json=body)


async def test_the_best_of_each_dialog(client: httpx.AsyncClient, fake: Poet) -> None:
    system = {"role": "system", "content": "Be brief."}
    answer = await generate(client, [system, *users("a", "b")], "top_k", model="tiny")
    assert answer.status_code == 200
    rows = answer.json()["synthetic_data"]
    assert [row["messages"][:-1] for row in rows] == [[system, each] for each in users("a", "b")]
    assert rows[0]["messages"][-1] == {
        "role": "assistant",
        "content": "answer 0 to a",
        "stop_reason": "end_of_turn",
    }
    assert (rows[0]["score"], rows[0]["model"]) == (0.0, "tiny")
    statistics = answer.json()["statistics"]
    assert statistics == {
        "dialogs": 2,
        "failed": 0,
        "generated": 8,
        "duplicates": 0,
        "unscored": 0,
        "kept": 2,
        "mean_score": -3.5,
        "mean_score_kept": statistics["mean_score_kept"],
    }
    request = fake.requests[0]
    assert (request.sampling_params.strategy.temperature, request.logprobs.top_k) == (0.8, 0)
    # They are rows of a dataset for training as they are.
    source = {"type": "rows", "rows": rows}
    body = {"dataset_id": "made", "purpose": "post-training/messages", "source": source}
    assert (await client.post("/v1/datasets", json=body)).status_code == 200


async def test_duplicates_and_failures(client: httpx.AsyncClient) -> None:
    answer = await generate(client, users("repeat", "long", "fine"))
    found = answer.json()
    assert len(found["synthetic_data"]) == 5
    assert found["statistics"]["duplicates"] == 3
    assert (found["statistics"]["failed"], found["statistics"]["kept"]) == (1, 5)


async def test_nothing(client: httpx.AsyncClient) -> None:
    found = (await generate(client, [])).json()
    assert (found["synthetic_data"], found["statistics"]["mean_score"]) == ([], None)


@pytest.mark.parametrize(
    ("dialogs", "more", "status", "detail"),
    [
        (users("a"), {"model": "none"}, 404, "model 'none' is not registered"),
        (users("a"), {"model": "org/embedder"}, 400, "embedding model"),
        (users("a"), {"filtering_function": "best"}, 400, "filtering_function"),
        ([{"role": "assistant", "content": "a", "stop_reason": "end_of_turn"}], {}, 400, "begins with"),
        ("a", {}, 400, "dialogs"),
    ],
)
async def test_bad_requests(
    client: httpx.AsyncClient, dialogs: Any, more: Any, status: int, detail: str
) -> None:
    answer = await generate(client, dialogs, **more)
    assert (answer.status_code, detail in answer.json()["detail"]) == (status, True), answer.json()


async def test_many_become_a_job_and_a_dataset(
    client: httpx.AsyncClient, stack: Stack, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "WAIT_S", 0.2)
    dialogs = users(*(f"question {n}" for n in range(DIRECT + 1)))
    assert (await generate(client, dialogs, "top_k")).status_code == 503
    (job,) = await stack.jobs.list(kind="synthesize")
    lease = await stack.jobs.claim(job.id, "test")
    recipe = Synthesis.model_validate(job.request).recipe
    result = await run(
        JobContext(settings, stack.database, lease),
        stack.storage,
        stack.datasets,
        lambda: generating(lambda: nullcontext(stack), recipe),
    )
    await stack.jobs.finish(lease, result)
    answer = (await generate(client, dialogs, "top_k")).json()
    assert [row["messages"][0]["content"] for row in answer["synthetic_data"]] == [
        f"question {n}" for n in range(DIRECT + 1)
    ]
    dataset_id = answer["statistics"]["dataset_id"]
    assert (await stack.datasets.registry.get(dataset_id)).purpose == "post-training/messages"
    assert await stack.datasets.count(dataset_id) == DIRECT + 1
    # Without its dataset it is made anew.
    await stack.datasets.delete(dataset_id)
    assert (await generate(client, dialogs, "top_k")).status_code == 503
    assert len(await stack.jobs.list(kind="synthesize")) == 2
