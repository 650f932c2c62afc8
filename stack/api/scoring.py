"""Scoring: score rows, or a whole dataset."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from stack.api.routing import api_router
from stack.context import CurrentStack, ProviderData
from stack.schemas.scoring import ScoreBatchRequest, ScoreBatchResponse, ScoreRequest, ScoreResponse

router = api_router("Scoring")


@router.post("/v1/scoring/score")
async def score(request: ScoreRequest, stack: CurrentStack, provider_data: ProviderData) -> ScoreResponse:
    """Score a list of rows. A row that cannot be scored has a null `score` and an `error` that says why."""
    return await stack.scoring.score(request, provider_data)


@router.post("/v1/scoring/score-batch", response_model=ScoreBatchResponse)
async def score_batch(
    request: ScoreBatchRequest, stack: CurrentStack, provider_data: ProviderData
) -> Response:
    """Score all rows of a dataset. `save_results_dataset` makes a dataset of the rows with their scores.

    The same functions and parameters over the same rows save under the same id, in place of what was there.
    """
    results = await stack.scoring.score_batch(request, provider_data)
    return Response(await run_in_threadpool(results.body), media_type="application/json")
