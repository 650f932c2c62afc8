"""The job of kind `score`: all rows of a dataset, scored by Ray Data's workers when there are many."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_json

from stack.batch.parts import Results, Row, Table
from stack.batch.work import Answer, Work, open_stores, work
from stack.datasets.datasets import Datasets
from stack.engine.base import Priority
from stack.errors import NotFound
from stack.jobs.context import JobContext
from stack.schemas.scoring_functions import ScoringFnParams
from stack.scoring.batch import BatchResults, SavedRows, with_aliases
from stack.scoring.scorer import ScoreRow, unscored
from stack.store.database import Database
from stack.store.jobs import Job
from stack.store.storage import Lost, Storage

if TYPE_CHECKING:
    from stack.scoring.scoreboard import Scoreboard
    from stack.scoring.scoring import Scoring

KIND = "score"


class DatasetScoring(BaseModel):
    """What is submitted: a dataset as it was then, and what scores it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset_id: str
    table: str
    rows: int
    functions: dict[str, ScoringFnParams | None]
    save: bool


class Scores(Protocol):
    """What the job needs of a stack."""

    @property
    def scoring(self) -> Scoring: ...

    @property
    def datasets(self) -> Datasets: ...

    @property
    def database(self) -> Database: ...


@asynccontextmanager
async def scoring_rows(
    open_stack: Callable[[], AbstractAsyncContextManager[Scores]], asked: DatasetScoring
) -> AsyncGenerator[Answer]:
    """What comes of a row: its `scores` by function."""
    async with open_stack() as stack:
        dataset = await stack.datasets.registry.get(asked.dataset_id)
        board = await stack.scoring.open(asked.functions, priority=Priority.BATCH)

        async def answer(row: Row) -> Row:
            scored = await board.score(with_aliases([row], dataset))
            return {"scores": {name: rows[0] for name, rows in scored.items()}}

        yield answer


async def run(context: JobContext, stack: Scores, open_answer: Work) -> dict[str, Any]:
    """Score what no earlier attempt has. The result names the dataset that was saved, if it was asked for."""
    asked = DatasetScoring.model_validate(context.job.request)
    source = Table(asked.table, asked.rows)
    done = await work(context, source, open_answer)
    result: dict[str, Any] = done._asdict()
    if asked.save:
        context.progress(phase="saving")
        result["dataset_id"] = await _save(context, stack, asked, source)
    return result


async def _save(context: JobContext, stack: Scores, asked: DatasetScoring, source: Table) -> str:
    dataset = await stack.datasets.registry.get(asked.dataset_id)
    functions = stack.scoring.functions
    plans = [await functions.plan(name, params) for name, params in asked.functions.items()]
    saved = SavedRows(stack.database)
    try:
        async with open_stores(context.settings) as stores:
            parts = await source.parts(stores)
            async with aclosing(Results(stores.storage, context.job.id).read(len(parts))) as pages:
                for part in parts:
                    rows = [row for row in await source.read(part, stores) if isinstance(row, dict)]
                    found = await anext(pages)
                    saved.write(rows, {name: _scores(found, name) for name in asked.functions})
        return await saved.register(stack.datasets, dataset, plans)
    finally:
        saved.close()


async def results_of(job: Job, board: Scoreboard, storage: Storage, datasets: Datasets) -> BatchResults:
    """What a completed job found. Raises Lost when its files or the dataset that it saved are gone."""
    result = job.result or {}
    score_rows: dict[str, list[bytes]] = {name: [] for name in board.tallies}
    async for page in Results(storage, job.id).read(result["parts"]):
        for name, tally in board.tallies.items():
            scores = _scores(page, name)
            tally.add(scores)
            score_rows[name].append(to_json(scores)[1:-1])
    saved_as: str | None = result.get("dataset_id")
    if saved_as is not None:
        try:
            await datasets.registry.get(saved_as)
        except NotFound as error:
            raise Lost(saved_as) from error
    return BatchResults(board.aggregated(), score_rows, saved_as)


def _scores(page: list[Row], name: str) -> list[ScoreRow]:
    return [
        unscored(result["error"]["detail"]) if "error" in result else result["scores"][name]
        for result in page
    ]
