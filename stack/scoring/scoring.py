"""Scoring: rows, of a request or of a dataset, by any number of scoring functions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from stack.datasets.datasets import Datasets
from stack.engine.base import Priority
from stack.errors import BadRequest
from stack.models.serving import Serving
from stack.schemas.scoring import ScoreBatchRequest, ScoreRequest, ScoreResponse, ScoringResult
from stack.scoring.batch import BatchResults, score_dataset
from stack.scoring.builtin import Params
from stack.scoring.functions import ScoringFunctions
from stack.scoring.scoreboard import Scoreboard
from stack.scoring.workers import Workers
from stack.store.database import Database


class Scoring:
    def __init__(self, functions: ScoringFunctions, datasets: Datasets, database: Database) -> None:
        self.functions, self._datasets, self._database = functions, datasets, database

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
        """Raises NotFound for an unknown dataset, and as `open`."""
        await self._datasets.registry.get(request.dataset_id)
        board = await self.open(request.scoring_functions, provider_data, Priority.BATCH)
        save_with = self._database if request.save_results_dataset else None
        return await score_dataset(self._datasets, request.dataset_id, board, save_with)


@asynccontextmanager
async def open_scoring(database: Database, serving: Serving, datasets: Datasets) -> AsyncGenerator[Scoring]:
    workers = Workers()
    try:
        yield Scoring(ScoringFunctions(database, serving, workers), datasets, database)
    finally:
        await asyncio.to_thread(workers.close)
