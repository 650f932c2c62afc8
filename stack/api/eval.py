"""Eval: run benchmarks on models and agents, by jobs; evaluate the rows of a request."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from stack.api.routing import api_router
from stack.context import CurrentStack
from stack.schemas.eval import EvaluateResponse, EvaluateRowsRequest, Job, RunEvalRequest

router = api_router("Eval")


@router.post("/v1/eval/benchmarks/{benchmark_id:path}/evaluations", response_model=EvaluateResponse)
async def evaluate_rows(benchmark_id: str, request: EvaluateRowsRequest, stack: CurrentStack) -> Response:
    """Evaluate up to 1,000 rows, while the request waits."""
    return _answer(await stack.evaluations.evaluate_rows(benchmark_id, request))


@router.post("/v1/eval/benchmarks/{benchmark_id:path}/jobs")
async def run_eval(benchmark_id: str, request: RunEvalRequest, stack: CurrentStack) -> Job:
    """Run a benchmark: a job asks the candidate each row of the dataset and scores what it says."""
    return await stack.evaluations.run(benchmark_id, request.benchmark_config)


@router.get("/v1/eval/benchmarks/{benchmark_id:path}/jobs/{job_id}/result", response_model=EvaluateResponse)
async def job_result(benchmark_id: str, job_id: str, stack: CurrentStack) -> Response:
    """The generations and scores of a completed job, row by row, and what they amount to."""
    return _answer(await stack.evaluations.result(benchmark_id, job_id))


@router.get("/v1/eval/benchmarks/{benchmark_id:path}/jobs/{job_id}")
async def job_status(benchmark_id: str, job_id: str, stack: CurrentStack) -> Job:
    """A job's status."""
    return await stack.evaluations.status(benchmark_id, job_id)


@router.delete("/v1/eval/benchmarks/{benchmark_id:path}/jobs/{job_id}")
async def job_cancel(benchmark_id: str, job_id: str, stack: CurrentStack) -> None:
    """Cancel a job."""
    await stack.evaluations.cancel(benchmark_id, job_id)


@router.get("/v1/eval/compare", include_in_schema=False)
async def compare(baseline: str, candidate: str, stack: CurrentStack) -> dict[str, Any]:
    """Two completed jobs on the same rows: the mean difference, its interval, and its significance."""
    return await stack.evaluations.compare(baseline, candidate)


def _answer(response: EvaluateResponse) -> Response:
    """Written at once: FastAPI would validate it again."""
    return Response(response.model_dump_json(), media_type="application/json")
