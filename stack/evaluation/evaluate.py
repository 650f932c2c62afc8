"""Rows are answered by a candidate and scored, by a job of kind `evaluate` or for a request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from stack.agents.agents import Agents
from stack.agents.turns import Turns
from stack.batch.parts import Results, Table
from stack.batch.work import Answer, Work, work
from stack.engine.base import Priority
from stack.evaluation.candidates import Asked, asking
from stack.evaluation.interval import interval
from stack.evaluation.questions import Row, scored_row
from stack.jobs.context import JobContext
from stack.models.serving import Serving
from stack.schemas.common import JsonObject
from stack.schemas.eval import EvalCandidate, EvaluateResponse, ModelCandidate
from stack.schemas.scoring import ScoringResult
from stack.schemas.scoring_functions import ScoringFnParams
from stack.scoring.scorer import unscored
from stack.scoring.scoring import Scoring
from stack.scoring.tally import Tally
from stack.store.storage import Storage

KIND = "evaluate"


class Evaluation(BaseModel):
    """What is submitted: a benchmark as it was then, and who is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    benchmark_id: str
    dataset_id: str
    table: str
    rows: int
    candidate: EvalCandidate
    scoring: dict[str, ScoringFnParams | None]


class Evaluates(Asked, Protocol):
    """What evaluations need of a stack."""

    @property
    def scoring(self) -> Scoring: ...


@dataclass(frozen=True, slots=True)
class Evaluators:
    """Only that."""

    serving: Serving
    agents: Agents
    turns: Turns
    scoring: Scoring


@asynccontextmanager
async def evaluating(
    open_stack: Callable[[], AbstractAsyncContextManager[Evaluates]],
    candidate: EvalCandidate,
    scoring: Mapping[str, ScoringFnParams | None],
    agent_id: str | None = None,
) -> AsyncGenerator[Answer]:
    """What comes of a row: its `generation`, and its `scores` by function.

    `agent_id` is of the candidate's agent, if one is there.
    """
    async with open_stack() as stack, asking(stack, candidate, agent_id) as ask:
        board = await stack.scoring.open(scoring, priority=Priority.BATCH) if scoring else None

        async def answer(row: Row) -> Row:
            said = await ask(row)
            scores = await board.score([scored_row(row, said)]) if board is not None else {}
            return {
                "generation": {"generated_answer": said},
                "scores": {name: rows[0] for name, rows in scores.items()},
            }

        yield answer


async def run(context: JobContext, storage: Storage, scoring: Scoring, open_answer: Work) -> dict[str, Any]:
    """Evaluate what no earlier attempt has. The result has the aggregates, by function."""
    evaluation = Evaluation.model_validate(context.job.request)
    done = await work(context, Table(evaluation.table, evaluation.rows), open_answer)
    context.progress(phase="aggregating")
    found = _Found(evaluation.scoring)
    async for page in Results(storage, context.job.id).read(done.parts):
        found.add(page)
    return {
        "benchmark_id": evaluation.benchmark_id,
        "candidate": _name(evaluation.candidate),
        **done._asdict(),
        "failed": found.failed,
        "scores": await found.aggregated(scoring),
    }


def _name(candidate: EvalCandidate) -> str:
    return candidate.model if isinstance(candidate, ModelCandidate) else f"agent of {candidate.config.model}"


async def response_of(
    pages: AsyncIterable[list[Row]], functions: Mapping[str, ScoringFnParams | None], scoring: Scoring
) -> EvaluateResponse:
    """What the API answers: generations and scores of each row, and the aggregates."""
    found = _Found(functions)
    generations: list[JsonObject] = []
    score_rows: dict[str, list[JsonObject]] = {name: [] for name in functions}
    async for page in pages:
        found.add(page)
        for result in page:
            generations.append(generation_of(result))
            for name, rows in score_rows.items():
                rows.append(score_of(result, name))
    aggregated = await found.aggregated(scoring)
    return EvaluateResponse(
        generations=generations,
        scores={
            name: ScoringResult(score_rows=rows, aggregated_results=aggregated[name])
            for name, rows in score_rows.items()
        },
    )


def generation_of(result: Row) -> JsonObject:
    """A row that got no answer has its reason instead."""
    if "error" in result:
        return {"generated_answer": None, "error": result["error"]["detail"]}
    generation: JsonObject = result["generation"]
    return generation


def score_of(result: Row, name: str) -> JsonObject:
    if "error" in result:
        return unscored(f"the row got no answer: {result['error']['detail']}")
    score: JsonObject = result["scores"][name]
    return score


class _Found:
    """What was scored so far, of rows that come a page at a time."""

    def __init__(self, functions: Mapping[str, ScoringFnParams | None]) -> None:
        self._functions = functions
        self._tallies = {name: Tally() for name in functions}
        self.failed = 0

    def add(self, page: list[Row]) -> None:
        self.failed += sum("error" in result for result in page)
        for name, tally in self._tallies.items():
            tally.add(score_of(result, name) for result in page)

    async def aggregated(self, scoring: Scoring) -> dict[str, JsonObject]:
        """With the bootstrap confidence interval of the mean score, where scores are numbers."""
        found = {}
        for name, params in self._functions.items():
            plan, tally = await scoring.functions.plan(name, params), self._tallies[name]
            found[name] = tally.aggregate(plan.aggregations) | interval(tally)
        return found
