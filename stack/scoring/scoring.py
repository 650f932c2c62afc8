"""Scoring: rows, of a request or of a dataset, by any number of scoring functions."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from stack.batch.shared import SharedJobs
from stack.datasets.datasets import Datasets
from stack.engine.base import Priority
from stack.errors import BadRequest
from stack.models.serving import Serving
from stack.schemas.scoring import ScoreBatchRequest, ScoreRequest, ScoreResponse, ScoringResult
from stack.scoring.batch import PAGE_ROWS, BatchResults, score_dataset, with_aliases
from stack.scoring.builtin import Params
from stack.scoring.functions import ScoringFunctions
from stack.scoring.job import KIND, DatasetScoring, results_of
from stack.scoring.scoreboard import Scoreboard
from stack.scoring.workers import Workers
from stack.store.database import Database
from stack.store.jobs import Job, Jobs
from stack.store.storage import Storage


class Scoring:
    def __init__(
        self,
        functions: ScoringFunctions,
        datasets: Datasets,
        database: Database,
        jobs: Jobs,
        storage: Storage,
    ) -> None:
        self.functions, self._datasets, self._database = functions, datasets, database
        self._jobs, self._storage = jobs, storage

    async def open(
        self,
        scoring_functions: Mapping[str, Params | None],
        provider_data: Mapping[str, Any] | None = None,
        priority: Priority = Priority.INTERACTIVE,
    ) -> Scoreboard:
        """Make the functions ready for rows. Raises BadRequest; NotFound or NotReady for a judge's model."""
        if not scoring_functions:
            raise BadRequest(
                "scoring_functions is empty: name at least one function of GET /v1/scoring-functions"
            )
        plans = [await self.functions.plan(name, params) for name, params in scoring_functions.items()]
        return Scoreboard({plan: await self.functions.open(plan, provider_data, priority) for plan in plans})

    async def score(
        self, request: ScoreRequest, provider_data: Mapping[str, Any] | None = None
    ) -> ScoreResponse:
        board = await self.open(request.scoring_functions, provider_data)
        board.check(request.input_rows)
        scored = await board.score(request.input_rows)
        aggregated = board.aggregated()
        return ScoreResponse(
            results={
                name: ScoringResult(score_rows=rows, aggregated_results=aggregated[name])
                for name, rows in scored.items()
            }
        )

    async def score_batch(
        self, request: ScoreBatchRequest, provider_data: Mapping[str, Any] | None = None
    ) -> BatchResults:
        """A dataset with many rows, for what the functions cost, is scored by a job.

        Raises NotFound for an unknown dataset, as `open`, and NotReady while a job works.
        """
        await self._datasets.registry.get(request.dataset_id)
        board = await self.open(request.scoring_functions, provider_data, Priority.BATCH)
        if await self._datasets.count(request.dataset_id) > board.direct:
            return await self._by_job(request, board)
        save_with = self._database if request.save_results_dataset else None
        return await score_dataset(self._datasets, request.dataset_id, board, save_with)

    async def _by_job(self, request: ScoreBatchRequest, board: Scoreboard) -> BatchResults:
        dataset = await self._datasets.registry.get(request.dataset_id)
        board.check(with_aliases(await self._datasets.read(dataset.identifier, 0, PAGE_ROWS), dataset))
        asked = DatasetScoring(
            dataset_id=dataset.identifier,
            table=await self._datasets.table(dataset.identifier),
            rows=await self._datasets.count(dataset.identifier),
            functions=request.scoring_functions,
            save=request.save_results_dataset,
        )
        said = json.dumps([asked.model_dump(mode="json"), [asdict(plan) for plan in board.plans]])
        key = f"{KIND}-{hashlib.sha256(said.encode()).hexdigest()[:24]}"

        async def submit(job_id: str) -> Job:
            return await self._jobs.submit(KIND, asked.model_dump(mode="json"), job_id)

        async def read(job: Job) -> BatchResults:
            return await results_of(job, board, self._storage, self._datasets)

        return await SharedJobs(self._jobs).result(key, submit, read)


@asynccontextmanager
async def open_scoring(
    database: Database, serving: Serving, datasets: Datasets, jobs: Jobs, storage: Storage
) -> AsyncGenerator[Scoring]:
    workers = Workers()
    try:
        yield Scoring(ScoringFunctions(database, serving, workers), datasets, database, jobs, storage)
    finally:
        await asyncio.to_thread(workers.close)
