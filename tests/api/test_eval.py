"""Benchmarks and evaluations over HTTP, with a model that the test writes and real scoring functions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import httpx
import pytest

from stack.context import Stack
from stack.engine.base import Priority
from stack.errors import ContextTooLong, NotReady
from stack.evaluation.candidates import agent_of, asking
from stack.evaluation.evaluate import Evaluation, evaluating, run
from stack.jobs.context import JobContext
from stack.schemas.inference import CompletionResponseStreamChunk
from tests.api.fake import FakeInference, complete, progress, start

GREEDY = {"strategy": {"type": "greedy"}, "max_tokens": 20}
ROWS = [{"question": f"What is {n} and {n}?", "answer": str(2 * n)} for n in range(20)]
MODEL = {"type": "model", "model": "tiny", "sampling_params": GREEDY}

AGENT = {"type": "agent", "config": {"model": "tiny", "instructions": "Add.", "sampling_params": GREEDY}}


class Adder(FakeInference):
    """Doubles the number in the question; wrong for every fifth, and 13 is too much for it."""

    wrong_every = 5

    def __init__(self) -> None:
        super().__init__()
        self.priorities: set[Priority] = set()

    async def chat_completion(  # type: ignore[override]
        self, request: Any, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[Any]:
        self.priorities.add(priority)
        self.requests.append(request)
        yield start()
        yield progress(answer_to(request.messages[-1].content, self.wrong_every))
        yield complete()

    async def completion(self, request: Any, priority: Priority = Priority.INTERACTIVE) -> AsyncIterator[Any]:  # type: ignore[override]
        self.requests.append(request)
        yield CompletionResponseStreamChunk(delta=answer_to(request.content), stop_reason="end_of_turn")


def answer_to(text: str, wrong_every: int = 5) -> str:
    number = int(text.split()[2])
    if number == 13:
        raise ContextTooLong(13, 12)
    return "no idea" if number % wrong_every == wrong_every - 1 else str(2 * number)


@pytest.fixture
def fake() -> Adder:
    return Adder()


async def register(client: httpx.AsyncClient, functions: list[str], rows: Any = ROWS, **more: Any) -> None:
    source = {"type": "rows", "rows": rows}
    purpose = "eval/messages-answer" if rows and "messages" in rows[0] else "eval/question-answer"
    body = {"dataset_id": "sums", "purpose": purpose, "source": source}
    assert (await client.post("/v1/datasets", json=body)).status_code == 200
    body = {"benchmark_id": "org/sums", "dataset_id": "sums", "scoring_functions": functions} | more
    answer = await client.post("/v1/eval/benchmarks", json=body)
    assert (answer.status_code, answer.json()) == (200, None)


async def submit(client: httpx.AsyncClient, candidate: Any = MODEL, **more: Any) -> Any:
    config = {"eval_candidate": candidate, "scoring_params": {}} | more
    return await client.post("/v1/eval/benchmarks/org/sums/jobs", json={"benchmark_config": config})


async def finish(stack: Stack, job_id: str) -> None:
    """Work on the job as its process does."""
    job = await stack.jobs.get(job_id)
    evaluation = Evaluation.model_validate(job.request)
    lease = await stack.jobs.claim(job_id, "test")
    context = JobContext(stack.settings, stack.database, lease)
    candidate, scoring = evaluation.candidate, evaluation.scoring
    async with agent_of(stack.agents, candidate, lease.job) as agent_id:
        answers = partial(evaluating, lambda: nullcontext(stack), candidate, scoring, agent_id)
        result = await run(context, stack.storage, stack.scoring, answers)
    await stack.jobs.finish(lease, result)


async def evaluated(client: httpx.AsyncClient, stack: Stack, candidate: Any = MODEL, **more: Any) -> Any:
    job_id = (await submit(client, candidate, **more)).json()["job_id"]
    await finish(stack, job_id)
    return (await client.get(f"/v1/eval/benchmarks/org/sums/jobs/{job_id}/result")).json()


async def test_benchmarks(client: httpx.AsyncClient) -> None:
    await register(client, ["basic::equality"], metadata={"language": "en"})
    benchmark = (await client.get("/v1/eval/benchmarks/org/sums")).json()
    assert benchmark == {
        "identifier": "org/sums",
        "provider_resource_id": "org/sums",
        "provider_id": "ray-data",
        "type": "benchmark",
        "dataset_id": "sums",
        "scoring_functions": ["basic::equality"],
        "metadata": {"language": "en"},
    }
    assert (await client.get("/v1/eval/benchmarks")).json() == {"data": [benchmark]}
    assert (await client.get("/v1/eval/benchmarks/other")).status_code == 404


async def test_a_run(client: httpx.AsyncClient, stack: Stack, fake: Adder) -> None:
    await register(client, ["basic::equality", "basic::subset_of"])
    submitted = await submit(client)
    job_id = submitted.json()["job_id"]
    assert submitted.json() == {"job_id": job_id, "status": "scheduled"}
    url = f"/v1/eval/benchmarks/org/sums/jobs/{job_id}"
    early = await client.get(f"{url}/result")
    assert (early.status_code, "is scheduled" in early.json()["detail"]) == (400, True)
    await finish(stack, job_id)
    assert (await client.get(url)).json() == {"job_id": job_id, "status": "completed"}
    result = (await client.get(f"{url}/result")).json()
    assert [each["generated_answer"] for each in result["generations"][3:6]] == ["6", "no idea", "10"]
    assert result["generations"][13] == {
        "generated_answer": None,
        "error": "the prompt has 13 tokens, the model takes 12",
    }
    scores = result["scores"]["basic::equality"]
    assert [row["score"] for row in scores["score_rows"][3:6]] == [1, 0, 1]
    assert scores["score_rows"][13]["score"] is None
    aggregated = scores["aggregated_results"]
    assert aggregated["accuracy"] == {
        "accuracy": 15 / 19,
        "num_correct": 15,
        "num_total": 19,
        "num_unscored": 1,
    }
    bootstrap = aggregated["bootstrap"]
    assert bootstrap["mean"] == pytest.approx(15 / 19)
    assert 0.5 < bootstrap["low"] < bootstrap["mean"] < bootstrap["high"] <= 1
    assert set(result["scores"]) == {"basic::equality", "basic::subset_of"}
    assert fake.priorities == {Priority.BATCH}
    again = await client.delete(url)
    assert (again.status_code, "completed already" in again.json()["detail"]) == (400, True)


async def test_so_many_examples_with_a_system_message(
    client: httpx.AsyncClient, stack: Stack, fake: Adder
) -> None:
    await register(client, ["basic::equality"])
    candidate = MODEL | {"system_message": {"role": "system", "content": "Add."}}
    result = await evaluated(client, stack, candidate, num_examples=3)
    assert len(result["generations"]) == 3
    said = sorted([message.content for message in request.messages] for request in fake.requests)
    assert said[0] == ["Add.", "What is 0 and 0?"]
    assert fake.requests[0].sampling_params.max_tokens == 20
    assert len((await evaluated(client, stack, num_examples=10_000))["generations"]) == 20


async def test_messages_and_completions(client: httpx.AsyncClient, stack: Stack, fake: Adder) -> None:
    said = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    rows: list[Any] = [
        {"messages": [*said, {"role": "user", "content": "What is 7 and 7?"}], "answer": "14"},
        {"messages": [{"role": "user", "content": "x"}], "answer": "6", "completion_input": "What is 3 …"},
    ]
    await register(client, ["basic::equality"], rows)
    result = await evaluated(client, stack)
    assert [row["score"] for row in result["scores"]["basic::equality"]["score_rows"]] == [1, 1]
    assert sorted(type(request).__name__ for request in fake.requests) == [
        "ChatCompletionRequest",
        "CompletionRequest",
    ]


async def test_without_functions_there_are_answers_only(client: httpx.AsyncClient, stack: Stack) -> None:
    await register(client, [])
    result = await evaluated(client, stack, num_examples=2)
    assert (len(result["generations"]), result["scores"]) == (2, {})
    config = {"eval_candidate": MODEL, "scoring_params": {}}
    body = {"input_rows": ROWS[:2], "scoring_functions": [], "benchmark_config": config}
    answer = await client.post("/v1/eval/benchmarks/org/sums/evaluations", json=body)
    assert [each["generated_answer"] for each in answer.json()["generations"]] == ["0", "2"]


async def test_no_rows(client: httpx.AsyncClient, stack: Stack) -> None:
    await register(client, ["basic::equality"], [])
    result = await evaluated(client, stack)
    assert result["generations"] == []
    assert result["scores"]["basic::equality"]["aggregated_results"]["accuracy"]["num_total"] == 0


async def test_rows_of_a_request(client: httpx.AsyncClient) -> None:
    await register(client, ["basic::equality"])
    config = {"eval_candidate": MODEL, "scoring_params": {}}
    body = {"input_rows": ROWS[:5], "scoring_functions": ["basic::subset_of"], "benchmark_config": config}
    answer = await client.post("/v1/eval/benchmarks/org/sums/evaluations", json=body)
    scores = answer.json()["scores"]["basic::subset_of"]
    assert [row["score"] for row in scores["score_rows"]] == [1, 1, 1, 1, 0]
    assert len(answer.json()["generations"]) == 5


async def test_two_runs_are_compared(client: httpx.AsyncClient, stack: Stack, fake: Adder) -> None:
    await register(client, ["basic::equality"])
    jobs = [(await submit(client)).json()["job_id"] for _ in range(3)]
    await finish(stack, jobs[0])
    fake.wrong_every = 2
    await finish(stack, jobs[1])
    url = f"/v1/eval/compare?baseline={jobs[0]}&candidate="
    found = (await client.get(url + jobs[1])).json()["scores"]["basic::equality"]
    # Odd numbers but 13 are wrong then; of those 9 and 19 were, and 4 and 14 are right now.
    assert (found["rows"], found["unscored"]) == (19, 1)
    assert (found["better"], found["worse"]) == (2, 7)
    assert found["difference"] == pytest.approx(-5 / 19)
    assert found["low"] < found["difference"] < found["high"]
    assert found["p_value"] == pytest.approx(0.1797, abs=1e-4)  # McNemar's exact test of 2 against 7
    unfinished = await client.get(url + jobs[2])
    assert (unfinished.status_code, "is scheduled" in unfinished.json()["detail"]) == (400, True)
    assert (await client.get(url + "none")).status_code == 404
    fewer = (await submit(client, num_examples=3)).json()["job_id"]
    await finish(stack, fewer)
    assert "these have different rows" in (await client.get(url + fewer)).json()["detail"]


async def test_an_agent(client: httpx.AsyncClient, stack: Stack, fake: Adder) -> None:
    await register(client, ["basic::equality"])
    result = await evaluated(client, stack, AGENT)
    assert [each["generated_answer"] for each in result["generations"][3:6]] == ["6", "no idea", "10"]
    assert fake.priorities == {Priority.BATCH}
    assert (await client.get("/v1/agents")).json()["data"] == []


async def test_the_next_attempt_deletes_the_agent_of_a_killed_one(
    client: httpx.AsyncClient, stack: Stack
) -> None:
    await register(client, ["basic::equality"])
    job_id = (await submit(client, AGENT)).json()["job_id"]
    lost = await stack.jobs.claim(job_id, "killed")
    candidate = Evaluation.model_validate(lost.job.request).candidate
    killed = agent_of(stack.agents, candidate, lost.job)
    left = await killed.__aenter__()
    assert [each["agent_id"] for each in (await client.get("/v1/agents")).json()["data"]] == [left]
    await stack.jobs.release(lost)
    await finish(stack, job_id)
    assert (await client.get("/v1/agents")).json()["data"] == []
    await killed.__aexit__(None, None, None)  # it was not quite dead


async def test_an_attempt_that_lost_its_job_leaves_the_next_ones_agent(
    client: httpx.AsyncClient, stack: Stack
) -> None:
    await register(client, ["basic::equality"])
    job_id = (await submit(client, AGENT)).json()["job_id"]
    first = await stack.jobs.claim(job_id, "first")
    candidate = Evaluation.model_validate(first.job.request).candidate
    async with agent_of(stack.agents, candidate, first.job):
        await stack.jobs.release(first)
        second = await stack.jobs.claim(job_id, "second")
        later = agent_of(stack.agents, candidate, second.job)
        its = await later.__aenter__()
    assert [each["agent_id"] for each in (await client.get("/v1/agents")).json()["data"]] == [its]
    await later.__aexit__(None, None, None)
    async with asking(stack, candidate, its) as ask:
        with pytest.raises(NotReady, match="agent is gone"):
            await ask({"question": "What is 1 and 1?", "answer": "2"})


async def test_jobs_of_others_are_unknown(client: httpx.AsyncClient, stack: Stack) -> None:
    await register(client, ["basic::equality"])
    other = await stack.jobs.submit("ingest", {})
    mine = (await submit(client)).json()["job_id"]
    for url in (f"org/sums/jobs/{other.id}", f"another/jobs/{mine}", "org/sums/jobs/none"):
        assert (await client.get(f"/v1/eval/benchmarks/{url}")).status_code == 404
        assert (await client.get(f"/v1/eval/benchmarks/{url}/result")).status_code == 404
        assert (await client.delete(f"/v1/eval/benchmarks/{url}")).status_code == 404
    assert (await client.delete(f"/v1/eval/benchmarks/org/sums/jobs/{mine}")).status_code == 200
    cancelled = await client.get(f"/v1/eval/benchmarks/org/sums/jobs/{mine}/result")
    assert (cancelled.status_code, "is cancelled" in cancelled.json()["detail"]) == (400, True)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"dataset_id": "none", "scoring_functions": []}, "there is no dataset 'none'"),
        (
            {"dataset_id": "sums", "scoring_functions": ["none"]},
            "'none' is not registered; there are basic::",
        ),
        ({"dataset_id": "sums", "scoring_functions": ["basic::bfcl"] * 2}, "names a function twice"),
        (
            {"dataset_id": "sums", "scoring_functions": [], "provider_id": "x"},
            "provider_id: there is 'ray-data'",
        ),
    ],
)
async def test_bad_benchmarks(client: httpx.AsyncClient, body: Any, detail: str) -> None:
    await register(client, [])
    answer = await client.post("/v1/eval/benchmarks", json={"benchmark_id": "bad"} | body)
    assert (answer.status_code, detail in answer.json()["detail"]) == (400, True), answer.json()


@pytest.mark.parametrize(
    ("config", "detail"),
    [
        ({"eval_candidate": MODEL | {"model": "none"}}, "eval_candidate.model: there is no model 'none'"),
        ({"eval_candidate": MODEL | {"model": "org/embedder"}}, "is an embedding model"),
        ({"num_examples": 0}, "num_examples"),
        ({"scoring_params": {"basic::docvqa": {"type": "basic"}}}, "none of the functions that score"),
        ({"scoring_params": {"basic::equality": {"type": "regex_parser"}}}, "params of type 'basic'"),
        ({"eval_candidate": {"type": "agent", "config": {"model": "none", "instructions": ""}}}, "'none'"),
    ],
)
async def test_bad_runs(client: httpx.AsyncClient, config: Any, detail: str) -> None:
    await register(client, ["basic::equality"])
    answer = await submit(client, **config)
    assert (answer.status_code, detail in answer.json()["detail"]) == (400, True), answer.json()


async def test_runs_of_what_is_gone(client: httpx.AsyncClient) -> None:
    assert (await submit(client)).status_code == 404
    await register(client, ["basic::equality"])
    await client.delete("/v1/datasets/sums")
    answer = await submit(client)
    assert (answer.status_code, "was deleted" in answer.json()["detail"]) == (400, True)
