from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from llama_stack_client import AsyncLlamaStackClient, BadRequestError, NotFoundError

from stack.app import create_app
from stack.batch import shared
from stack.context import Stack, open_stack
from stack.engine.base import Priority
from stack.jobs.context import JobContext
from stack.schemas.scoring_functions import NumberType, RegisterScoringFunctionRequest
from stack.scoring.builtin import BUILT_IN
from stack.scoring.job import DatasetScoring, run, scoring_rows
from stack.settings import Settings
from tests.scoring.judges import PromptJudge
from tests.store.examples import model


@pytest.fixture
def judge() -> PromptJudge:
    """Gives an answer as many points as it has characters."""
    return PromptJudge(lambda prompt: f"Points: {len(prompt.rpartition('A=')[2])}")


@pytest.fixture
async def app(settings: Settings, judge: PromptJudge) -> AsyncIterator[FastAPI]:
    app = create_app(lambda: open_stack(settings, lambda model_id: judge, "s"))
    async with app.router.lifespan_context(app):
        stack: Stack = app.state.stack
        await stack.models.declare(model("judge"))
        await stack.model_status.set("judge", "ready", None, {"context_length": 2048, "session": "s"})
        await stack.models.register(model("embedder", model_type="embedding"))
        await stack.models.register(model("loading"))
        await stack.model_status.set("loading", "loading", None, {"session": "s"})
        yield app


@pytest.fixture
def library(client: httpx.AsyncClient) -> AsyncLlamaStackClient:
    return AsyncLlamaStackClient(base_url="http://stack", http_client=client, max_retries=0)


JUDGE = {
    "type": "llm_as_judge",
    "judge_model": "judge",
    "prompt_template": "Q={input_query} A={generated_answer}",
    "judge_score_regexes": [r"Points: (\d+)"],
}


def row(generated: str, expected: str = "yes", **columns: Any) -> dict[str, Any]:
    return {"input_query": "Q", "generated_answer": generated, "expected_answer": expected} | columns


async def score(client: httpx.AsyncClient, rows: list[Any], **functions: Any) -> httpx.Response:
    body = {"input_rows": rows, "scoring_functions": functions}
    return await client.post("/v1/scoring/score", json=body)


async def score_batch(
    client: httpx.AsyncClient, dataset_id: str, functions: dict[str, Any], save: bool = False
) -> httpx.Response:
    body = {"dataset_id": dataset_id, "scoring_functions": functions, "save_results_dataset": save}
    return await client.post("/v1/scoring/score-batch", json=body)


async def register_rows(client: httpx.AsyncClient, dataset_id: str, rows: list[Any]) -> None:
    source = {"type": "rows", "rows": rows}
    body = {"dataset_id": dataset_id, "purpose": "eval/question-answer", "source": source}
    answer = await client.post("/v1/datasets", json=body)
    assert answer.status_code == 200, answer.text


async def read_rows(client: httpx.AsyncClient, dataset_id: str) -> list[Any]:
    rows: list[Any] = []
    start: int | None = 0
    while start is not None:
        page = (await client.get(f"/v1/datasetio/iterrows/{dataset_id}?start_index={start}")).json()
        rows, start = rows + page["data"], page.get("next_start_index")
    return rows


async def test_the_client_library(library: AsyncLlamaStackClient) -> None:
    functions = {function.identifier: function for function in await library.scoring_functions.list()}
    assert functions.keys() == BUILT_IN.keys()
    assert functions["basic::subset_of"].provider_resource_id == "subset-of"
    choice = functions["basic::regex_parser_multiple_choice_answer"].params
    assert choice is not None
    assert len(choice.parsing_regexes or []) > 30
    await library.scoring_functions.register(
        scoring_fn_id="org/points",
        description="Points for length",
        return_type={"type": "number"},
        provider_id="llm-as-judge",
        provider_scoring_fn_id="org/points",
        params=JUDGE | {"aggregation_functions": ["average", "median"]},  # type: ignore[arg-type]
    )
    found = await library.scoring_functions.retrieve("org/points")
    assert (found.provider_id, found.provider_resource_id) == ("llm-as-judge", "llm-as-judge-base")
    assert len(await library.scoring_functions.list()) == len(BUILT_IN) + 1
    answer = await library.scoring.score(
        input_rows=[row("yes"), row("no")],
        scoring_functions={"basic::equality": None, "org/points": None},
    )
    equality, points = answer.results["basic::equality"], answer.results["org/points"]
    assert equality.score_rows == [{"score": 1.0}, {"score": 0.0}]
    assert equality.aggregated_results == {"accuracy": {"accuracy": 0.5, "num_correct": 1, "num_total": 2}}
    assert [each["score"] for each in points.score_rows] == [3, 2]
    assert points.aggregated_results == {"average": {"average": 2.5}, "median": {"median": 2.5}}
    with pytest.raises(NotFoundError, match="'absent' is not registered"):
        await library.scoring_functions.retrieve("absent")
    with pytest.raises(BadRequestError, match="'absent' is not registered; there are basic::bfcl, basic"):
        await library.scoring.score(input_rows=[], scoring_functions={"absent": None})


async def test_all_built_in_functions(client: httpx.AsyncClient) -> None:
    columns = {
        "function": [{"name": "f", "parameters": {"properties": {}, "required": []}}],
        "ground_truth": [{"f": {}}],
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }
    rows = [
        row("[f()]", '["f"]', **columns),
        row("Answer: A", "A", **columns),
        row("so 1/2", "0.5", **columns),
    ]
    plain = dict.fromkeys(name for name in BUILT_IN if name != "llm-as-judge::base")
    answer = await score(client, rows, **plain, **{"llm-as-judge::base": JUDGE})
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert {name: [each["score"] for each in result["score_rows"]] for name, result in results.items()} == {
        "basic::equality": [0, 0, 0],
        "basic::subset_of": [0, 1, 0],
        "basic::regex_parser_multiple_choice_answer": [0, 1, 0],
        "basic::regex_parser_math_response": [0, 0, 1],
        "basic::bfcl": [1, 0, 0],
        "basic::ifeval": [1, 1, 1],
        "basic::docvqa": [1, None, None],
        "llm-as-judge::base": [5, 9, 6],
    }
    assert results["basic::docvqa"]["aggregated_results"] == {
        "accuracy": {"accuracy": 1, "num_correct": 1, "num_total": 1, "num_unscored": 2}
    }
    assert results["basic::ifeval"]["aggregated_results"] == {"weighted_average": {"weighted_average": 1}}
    assert results["llm-as-judge::base"]["aggregated_results"] == {}


async def test_no_rows(client: httpx.AsyncClient) -> None:
    answer = await score(client, [], **{"basic::equality": None, "basic::ifeval": None})
    assert answer.json()["results"] == {
        "basic::equality": {
            "score_rows": [],
            "aggregated_results": {"accuracy": {"accuracy": None, "num_correct": 0, "num_total": 0}},
        },
        "basic::ifeval": {
            "score_rows": [],
            "aggregated_results": {"weighted_average": {"weighted_average": None}},
        },
    }


async def test_params_of_one_call_change_no_other(client: httpx.AsyncClient) -> None:
    name = "basic::regex_parser_multiple_choice_answer"
    rows = [row("choice B", "B"), row("Answer: B", "B")]
    before = (await client.get(f"/v1/scoring-functions/{name}")).json()
    params = {"type": "regex_parser", "parsing_regexes": ["choice (.)"], "aggregation_functions": ["average"]}
    once = (await score(client, rows, **{name: params})).json()["results"][name]
    assert [each["score"] for each in once["score_rows"]] == [1, 0]
    assert once["aggregated_results"] == {"average": {"average": 0.5}}
    again = (await score(client, rows, **{name: None})).json()["results"][name]
    assert [each["score"] for each in again["score_rows"]] == [0, 1]
    assert again["aggregated_results"].keys() == {"accuracy"}
    assert (await client.get(f"/v1/scoring-functions/{name}")).json() == before


async def test_params_of_a_call_go_before_those_of_a_registration(client: httpx.AsyncClient) -> None:
    await register(client, scoring_fn_id="mine", params=JUDGE | {"aggregation_functions": ["average"]})
    call = {"type": "llm_as_judge", "judge_model": "judge", "aggregation_functions": ["categorical_count"]}
    answer = (await score(client, [row("yes")], mine=call)).json()["results"]["mine"]
    assert answer["score_rows"] == [{"score": 3, "judge_feedback": "Points: 3"}]
    assert answer["aggregated_results"] == {"categorical_count": {"categorical_count": {"3": 1}}}


async def register(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    body = {"scoring_fn_id": "mine", "description": "", "return_type": {"type": "number"}} | fields
    return await client.post("/v1/scoring-functions", json=body)


@pytest.mark.parametrize(
    ("fields", "resource", "provider"),
    [
        ({"provider_scoring_fn_id": "basic::subset_of"}, "subset-of", "basic"),
        ({"provider_scoring_fn_id": "subset-of", "provider_id": "basic"}, "subset-of", "basic"),
        ({"provider_id": "basic::equality"}, "equality", "basic"),
        ({"scoring_fn_id": "basic::docvqa"}, "docvqa", "basic"),
        ({"params": {"type": "regex_parser", "parsing_regexes": ["(.)"]}},
         "regex-parser-multiple-choice-answer", "basic"),
        ({"provider_id": "basic::regex_parser_math_response"}, "regex-parser-math-response", "basic"),
        ({"provider_id": "llm-as-judge", "params": JUDGE}, "llm-as-judge-base", "llm-as-judge"),
        ({"scoring_fn_id": "docvqa", "params": JUDGE}, "llm-as-judge-base", "llm-as-judge"),
        ({"provider_id": "inline::basic", "scoring_fn_id": "bfcl"}, "bfcl", "basic"),
        ({"params": JUDGE, "provider_scoring_fn_id": "whatever"}, "llm-as-judge-base", "llm-as-judge"),
        ({"provider_id": "llm-as-judge"}, "llm-as-judge-base", "llm-as-judge"),
    ],
)  # fmt: skip
async def test_what_computes_a_registered_function(
    client: httpx.AsyncClient, fields: dict[str, Any], resource: str, provider: str
) -> None:
    answer = await register(client, **fields)
    assert (answer.status_code, answer.json()) == (200, None)
    found = (await client.get(f"/v1/scoring-functions/{fields.get('scoring_fn_id', 'mine')}")).json()
    assert (found["provider_resource_id"], found["provider_id"]) == (resource, provider)
    assert (await register(client, **fields)).status_code == 200
    conflict = await register(client, **fields, description="another")
    assert (conflict.status_code, conflict.json()["title"]) == (400, "Already Registered")


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({}, "does not say what computes it: set provider_scoring_fn_id to one of basic::equality"),
        ({"provider_id": "nobody"}, "no scoring provider 'nobody'; providers are basic, llm-as-judge"),
        (
            {"provider_id": "llm-as-judge", "provider_scoring_fn_id": "basic::equality"},
            "does not compute 'basic::",
        ),
        (
            {"provider_scoring_fn_id": "basic::equality", "params": JUDGE},
            "takes params of type 'basic', not 'llm",
        ),
        ({"provider_id": "basic", "params": JUDGE}, "does not compute 'llm-as-judge::base'"),
        ({"params": JUDGE | {"judge_model": "absent"}}, "there is no model 'absent'"),
        ({"params": JUDGE | {"judge_model": "embedder"}}, "is an embedding model"),
        ({"params": JUDGE | {"judge_score_regexes": ["(", "a"]}}, "params.judge_score_regexes.0: '('"),
        ({"params": JUDGE | {"judge_score_regexes": []}}, "judge_score_regexes is empty"),
        ({"params": JUDGE | {"prompt_template": "x" * 100_001}}, "100,001 characters; the limit is 100,000"),
        ({"params": {"type": "regex_parser", "parsing_regexes": ["[z-a]"]}}, "params.parsing_regexes.0"),
        ({"params": {"type": "regex_parser", "parsing_regexes": []}}, "parsing_regexes is empty"),
        ({"params": {"type": "basic", "aggregation_functions": ["mean"]}}, "average"),
        ({"scoring_fn_id": " ", "params": JUDGE}, "at least one visible character"),
    ],
)
async def test_registrations_that_are_refused(
    client: httpx.AsyncClient, fields: dict[str, Any], detail: str
) -> None:
    answer = await register(client, **fields)
    assert answer.status_code == 400
    assert detail in answer.json()["detail"]
    assert len((await client.get("/v1/scoring-functions")).json()["data"]) == len(BUILT_IN)


@pytest.mark.parametrize(
    ("functions", "status", "detail"),
    [
        ({}, 400, "scoring_functions is empty"),
        ({"basic::equality": JUDGE}, 400, "takes params of type 'basic', not 'llm_as_judge'"),
        ({"basic::equality": {"type": "regex_parser"}}, 400, "not 'regex_parser'"),
        ({"llm-as-judge::base": None}, 400, "needs params that name the model that judges"),
        ({"llm-as-judge::base": JUDGE | {"judge_model": "absent"}}, 404, "model 'absent' is not registered"),
        ({"llm-as-judge::base": JUDGE | {"judge_model": "embedder"}}, 400, "is an embedding model"),
        ({"llm-as-judge::base": JUDGE | {"judge_model": "loading"}}, 503, "is not ready yet"),
        ({"llm-as-judge::base": JUDGE | {"judge_score_regexes": ["*"]}}, 400, "is not a regular expression"),
        ({"basic::bfcl": None}, 200, ""),
        (
            {"basic::ifeval": None},
            400,
            "no row has instruction_id_list and kwargs; the first row has input_q",
        ),
    ],
)
async def test_calls_that_are_refused(
    client: httpx.AsyncClient, functions: dict[str, Any], status: int, detail: str
) -> None:
    answer = await score(client, [row("yes")], **functions)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert detail in answer.json()["detail"]


async def test_a_constraint_reaches_the_judge(client: httpx.AsyncClient, judge: PromptJudge) -> None:
    answer = await score(client, [row("yes")], **{"llm-as-judge::base": JUDGE})
    assert answer.json()["results"]["llm-as-judge::base"]["score_rows"][0]["score"] == 3
    grammar = judge.requests[0].response_format.bnf
    assert grammar["syntax"] == "regex"
    assert "Points" in grammar["grammar"]
    assert judge.priorities == {Priority.INTERACTIVE}


async def test_a_judge_with_nothing_but_a_model(client: httpx.AsyncClient, judge: PromptJudge) -> None:
    judge.judge = lambda prompt: "10" if "Expected answer: yes" in prompt else "0"
    params = {"type": "llm_as_judge", "judge_model": "judge"}
    answer = await score(client, [row("yes"), row("yes", "no")], **{"llm-as-judge::base": params})
    rows = answer.json()["results"]["llm-as-judge::base"]["score_rows"]
    assert [each["score"] for each in rows] == [10, 0]


async def test_a_dataset(client: httpx.AsyncClient) -> None:
    """`question` and `answer` stand for input_query and expected_answer."""
    rows = [
        {"question": f"q{n}", "answer": str(n % 3), "generated_answer": str(n % 2), "n": n}
        for n in range(4500)
    ]
    await register_rows(client, "data/set", rows)
    answer = await score_batch(client, "data/set", {"basic::equality": None}, save=True)
    assert answer.status_code == 200, answer.text
    equality = answer.json()["results"]["basic::equality"]
    expected = [1.0 if n % 2 == n % 3 else 0.0 for n in range(4500)]
    assert [each["score"] for each in equality["score_rows"]] == expected
    assert equality["aggregated_results"]["accuracy"] == {
        "accuracy": sum(expected) / 4500,
        "num_correct": sum(expected),
        "num_total": 4500,
    }
    dataset_id = answer.json()["dataset_id"]
    saved = await read_rows(client, dataset_id)
    assert saved == [
        each | {"scores": {"basic::equality": {"score": value}}}
        for each, value in zip(rows, expected, strict=True)
    ]
    dataset = (await client.get(f"/v1/datasets/{dataset_id}")).json()
    assert dataset["metadata"] == {
        "dataset_id": "data/set",
        "rows": 4500,
        "scoring_functions": ["basic::equality"],
    }
    again = await score_batch(client, "data/set", {"basic::equality": None}, save=True)
    assert again.json() == answer.json()
    assert await read_rows(client, dataset_id) == saved
    other = {"basic::equality": {"type": "basic", "aggregation_functions": ["average"]}}
    assert (await score_batch(client, "data/set", other, save=True)).json()["dataset_id"] != dataset_id
    chained = await score_batch(client, dataset_id, {"basic::subset_of": None}, save=True)
    first = (await read_rows(client, chained.json()["dataset_id"]))[0]
    assert first["scores"] == {"basic::equality": {"score": 1.0}, "basic::subset_of": {"score": 1.0}}


async def test_the_same_call_twice_at_a_time(client: httpx.AsyncClient) -> None:
    rows = [{"question": "q", "answer": "a", "generated_answer": "a" * 1000, "n": n} for n in range(20_000)]
    await register_rows(client, "d", rows)
    calls = [score_batch(client, "d", {"basic::equality": None}, save=True) for _ in range(3)]
    answers = await asyncio.gather(*calls)
    assert [answer.status_code for answer in answers] == [200] * 3
    (dataset_id,) = {answer.json()["dataset_id"] for answer in answers}
    assert [each["n"] for each in await read_rows(client, dataset_id)] == [*range(20_000)]


async def test_a_dataset_is_judged_at_low_priority(client: httpx.AsyncClient, judge: PromptJudge) -> None:
    rows = [{"question": "q", "answer": "a", "generated_answer": "a" * n} for n in range(100)]
    await register_rows(client, "d", rows)
    answer = (await score_batch(client, "d", {"llm-as-judge::base": JUDGE})).json()
    assert "dataset_id" not in answer
    scored = answer["results"]["llm-as-judge::base"]["score_rows"]
    assert [each["score"] for each in scored] == list(range(100))
    assert judge.priorities == {Priority.BATCH}


async def test_a_large_dataset_is_scored_in_little_time(client: httpx.AsyncClient) -> None:
    rows = [{"question": "q", "answer": "a", "generated_answer": "a"}] * 50_000
    await register_rows(client, "large", rows)
    started = time.monotonic()
    answer = await score_batch(client, "large", {"basic::equality": None, "basic::subset_of": None})
    assert time.monotonic() - started < 30
    result = answer.json()["results"]["basic::subset_of"]
    assert len(result["score_rows"]) == 50_000
    assert result["aggregated_results"]["accuracy"]["num_correct"] == 50_000


async def test_a_large_dataset_is_judged_by_a_job(
    client: httpx.AsyncClient, stack: Stack, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same call waits for the same job; its dataset is as one that a request saves."""
    monkeypatch.setattr(shared, "WAIT_S", 0.2)
    rows = [{"question": f"q{n}", "answer": "a", "generated_answer": "a" * (n % 50)} for n in range(600)]
    rows[7].pop("generated_answer")
    await register_rows(client, "d", rows)
    functions = {"llm-as-judge::base": JUDGE | {"aggregation_functions": ["average"]}}
    answer = await score_batch(client, "d", functions, save=True)
    assert answer.status_code == 503, answer.text
    (waiting,) = await stack.jobs.list(kind="score")
    assert f"`stack jobs show {waiting.id} --follow`" in answer.json()["detail"]

    async def work(job_id: str) -> None:
        lease = await stack.jobs.claim(job_id, "test")
        asked = DatasetScoring.model_validate((await stack.jobs.get(job_id)).request)
        context = JobContext(settings, stack.database, lease)
        result = await run(context, stack, lambda: scoring_rows(lambda: nullcontext(stack), asked))
        await stack.jobs.finish(lease, result)

    await work(waiting.id)
    answer = await score_batch(client, "d", functions, save=True)
    assert answer.status_code == 200, answer.text
    result = answer.json()["results"]["llm-as-judge::base"]
    scores = [each["score"] for each in result["score_rows"]]
    assert scores == [None if n == 7 else n % 50 for n in range(600)]
    assert "generated_answer" in result["score_rows"][7]["error"]
    average = sum(filter(None, scores)) / 599
    assert result["aggregated_results"]["average"] == {
        "average": pytest.approx(average),
        "num_unscored": 1,
    }
    dataset_id = answer.json()["dataset_id"]
    saved = await read_rows(client, dataset_id)
    assert [{**each, "scores": None} for each in saved] == [{**each, "scores": None} for each in rows]
    assert [each["scores"]["llm-as-judge::base"] for each in saved] == result["score_rows"]
    # Without its dataset it is scored anew, and so are other rows.
    await stack.datasets.delete(dataset_id)
    assert (await score_batch(client, "d", functions, save=True)).status_code == 503
    await stack.datasets.append("d", rows[:1])
    assert (await score_batch(client, "d", functions)).status_code == 503
    assert len(await stack.jobs.list(kind="score")) == 3


async def test_a_large_dataset_without_the_columns(client: httpx.AsyncClient, stack: Stack) -> None:
    await register_rows(client, "d", [{"question": "q", "answer": "a"}] * 300)
    answer = await score_batch(client, "d", {"llm-as-judge::base": JUDGE})
    assert (answer.status_code, "no row has generated_answer" in answer.json()["detail"]) == (400, True)
    assert await stack.jobs.list(kind="score") == []


async def test_datasets_that_cannot_be_scored(client: httpx.AsyncClient) -> None:
    assert (await score_batch(client, "absent", {"basic::equality": None})).status_code == 404
    await register_rows(client, "plain", [{"question": "q", "answer": "a"}])
    answer = await score_batch(client, "plain", {"basic::equality": None}, save=True)
    assert answer.status_code == 400
    assert (
        "reads the columns generated_answer, expected_answer, and no row has generated_answer"
        in (answer.json()["detail"])
    )
    assert len((await client.get("/v1/datasets")).json()["data"]) == 1
    await register_rows(client, "empty", [])
    answer = await score_batch(client, "empty", {"basic::equality": None}, save=True)
    assert answer.json()["results"]["basic::equality"]["score_rows"] == []
    assert await read_rows(client, answer.json()["dataset_id"]) == []


async def test_hostile_calls(client: httpx.AsyncClient) -> None:
    """A hostile pattern, a hostile template and hostile values cost seconds, and their rows."""
    name = "basic::regex_parser_multiple_choice_answer"
    params = {"type": "regex_parser", "parsing_regexes": ["(a+)+$"]}
    rows = [row("a" * 50 + "b"), row("aaa", "aaa")]
    started = time.monotonic()
    answer = await score(client, rows, **{name: params})
    assert [each["score"] for each in answer.json()["results"][name]["score_rows"]] == [None, 1]
    template = "{input_query.__class__.__mro__} {input_query:>999999999} A={generated_answer}"
    judged = JUDGE | {"prompt_template": template, "judge_score_regexes": [r"(\d+)"]}
    answer = await score(client, [row("{generated_answer}")], **{"llm-as-judge::base": judged})
    assert answer.json()["results"]["llm-as-judge::base"]["score_rows"][0]["score"] == len(
        "{generated_answer}"
    )
    assert time.monotonic() - started < 30
    body = '{"input_rows": [{"generated_answer": NaN}], "scoring_functions": {"basic::equality": null}}'
    assert (await client.post("/v1/scoring/score", content=body)).status_code == 400


async def test_registrations_survive_a_restart(settings: Settings) -> None:
    async with open_stack(settings, session="s") as first:
        request = RegisterScoringFunctionRequest(
            scoring_fn_id="mine", description="", return_type=NumberType(), provider_id="basic::equality"
        )
        await first.scoring.functions.register(request)
    async with open_stack(settings, session="t") as second:
        assert (await second.scoring.functions.get("mine")).provider_resource_id == "equality"
