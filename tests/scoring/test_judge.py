"""A model as a judge: what it is asked, how its answers are read, and what its failures do."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from stack.engine.base import Priority
from stack.errors import BadRequest, ContextTooLong, NotReady, UpstreamError
from stack.schemas.sampling import GreedySamplingStrategy
from stack.scoring import model_scorer
from stack.scoring.judge import Judge
from stack.scoring.model_scorer import CONCURRENCY
from stack.scoring.template import Template
from stack.scoring.workers import Workers
from tests.scoring.judges import PromptJudge

TEMPLATE = "{input_query} | {expected_answer} | {generated_answer}"


def rows(*answers: str) -> list[Any]:
    return [{"input_query": "Q", "expected_answer": "E", "generated_answer": each} for each in answers]


def make(workers: Workers, model: PromptJudge, *patterns: str, **options: Any) -> Judge:
    options = {"grammar": None, "template": Template(TEMPLATE)} | options
    return Judge(workers, "judge", model, patterns=patterns or (r"(\d+)",), **options)


async def test_scores_and_feedback_in_order(workers: Workers) -> None:
    model = PromptJudge(lambda prompt: f"Because of it: {len(prompt.rpartition('| ')[2])} points.")
    scored = await make(workers, model).score_rows(rows("a", "bb", "ccc"))
    assert scored == [
        {"score": number, "judge_feedback": f"Because of it: {number} points."} for number in (1, 2, 3)
    ]
    asked = {request.messages[0].content: request for request in model.requests}
    assert asked.keys() == {f"Q | E | {each}" for each in ("a", "bb", "ccc")}
    for request in asked.values():
        assert request.sampling_params.strategy == GreedySamplingStrategy()
        assert request.response_format is None


async def test_calls_are_side_by_side_but_not_too_many(workers: Workers) -> None:
    model = PromptJudge(lambda prompt: "1")
    scored = await make(workers, model, priority=Priority.BATCH).score_rows(rows("a") * 200)
    assert [row["score"] for row in scored] == [1] * 200
    assert 1 < model.at_once <= CONCURRENCY
    assert model.priorities == {Priority.BATCH}


async def test_rows_that_come_one_by_one_are_bounded_together(workers: Workers) -> None:
    model = PromptJudge(lambda prompt: "1")
    judge = make(workers, model)
    scored = await asyncio.gather(*(judge.score_rows(rows("a")) for _ in range(100)))
    assert [row["score"] for (row,) in scored] == [1] * 100
    assert 1 < model.at_once <= CONCURRENCY


@pytest.mark.parametrize(
    ("answer", "patterns", "score"),
    [
        ("Score: 7", [r"Score: (\d)"], 7),
        ("Score: 7.5", [r"Score: ([\d.]+)"], 7.5),
        ("B", ["(A|B|C)"], "B"),
        ("rating 4", [r"nothing (\d)", r"rating (\d)"], 4),
        ("12345678901234567890", [r"(\d+)"], "12345678901234567890"),
        ("nan", ["(nan)"], "nan"),
        ("-3", [r"(-?\d)"], -3),
        ("no group 5", [r"\d"], 5),
    ],
)
async def test_how_answers_are_read(workers: Workers, answer: str, patterns: list[str], score: Any) -> None:
    (scored,) = await make(workers, PromptJudge(lambda prompt: answer), *patterns).score_rows(rows("a"))
    assert scored == {"score": score, "judge_feedback": answer}
    assert type(scored["score"]) is type(score)


async def test_a_score_that_is_to_be_a_text(workers: Workers) -> None:
    (scored,) = await make(workers, PromptJudge(lambda prompt: "7"), as_text=True).score_rows(rows("a"))
    assert scored["score"] == "7"


async def test_rows_that_cannot_be_judged(workers: Workers) -> None:
    """Each says why; the others are judged."""

    def judge(prompt: str) -> str | Exception:
        if "long" in prompt:
            return ContextTooLong(9000, 2048)
        return "I would rather not say" if "secret" in prompt else "5"

    given: list[Any] = [
        *rows("a", "long", "secret"),
        {"input_query": "Q", "generated_answer": "b"},
        *rows("c"),
    ]
    scored = await make(workers, PromptJudge(judge)).score_rows(given)
    assert [row["score"] for row in scored] == [5, None, None, None, 5]
    assert scored[1]["error"] == "the judge gave no answer: the prompt has 9000 tokens, the model takes 2048"
    assert scored[2] == {
        "score": None,
        "error": "no pattern of judge_score_regexes matches what the judge wrote",
        "judge_feedback": "I would rather not say",
    }
    assert scored[3]["error"] == "the row has no expected_answer"


async def test_what_passes_is_tried_again(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[Exception] = [NotReady("loading"), UpstreamError("broke")]
    model = PromptJudge(lambda prompt: failures.pop() if failures else "5")
    assert (await make(workers, model).score_rows(rows("a")))[0]["score"] == 5
    monkeypatch.setattr(model_scorer, "SHORT_PATIENCE_S", 0.3)
    model = PromptJudge(lambda prompt: UpstreamError("broke"))
    (scored,) = await make(workers, model).score_rows(rows("a"))
    assert scored == {"score": None, "error": "the judge gave no answer: broke"}
    assert 2 <= len(model.requests) <= 3  # at once, after 0.25 s and after 0.5 s more


async def test_a_job_waits_longer_but_only_once(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_scorer, "PATIENCE_S", 0.3)
    monkeypatch.setattr(model_scorer, "SHORT_PATIENCE_S", -1.0)
    model = PromptJudge(lambda prompt: UpstreamError("broke"))
    judge = make(workers, model, priority=Priority.BATCH)
    for calls in (3, 4):
        (scored,) = await judge.score_rows(rows("a"))
        assert (scored["score"], len(model.requests)) == (None, calls)


async def test_a_judge_under_a_constraint(workers: Workers) -> None:
    model = PromptJudge(lambda prompt: "B")
    await make(workers, model, "(A|B)", grammar="A|B").score_rows(rows("a"))
    assert model.requests[0].response_format.bnf == {"grammar": "A|B", "syntax": "regex"}


async def test_a_model_that_refuses_the_constraint_writes_freely(workers: Workers) -> None:
    model = PromptJudge(lambda prompt: BadRequest("no grammars") if len(model.requests) == 1 else "B")
    scored = await make(workers, model, "(A|B)", grammar="A|B").score_rows(rows("a"))
    assert scored[0]["score"] == "B"
    assert [request.response_format is None for request in model.requests] == [False, True]


async def test_hostile_answers_for_a_hostile_pattern(workers: Workers) -> None:
    model = PromptJudge(lambda prompt: "a" * 40 + "b" if "bad" in prompt else "aaa")
    scored = await make(workers, model, "(a+)+$").score_rows(rows("good", "bad", "good"))
    assert [row["score"] for row in scored] == ["aaa", None, "aaa"]
    assert re.search("CPU time", str(scored[1]["error"]))
