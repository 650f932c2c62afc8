"""Jobs of all kinds. The spec knows those of training and evaluation only, so these are not in OpenAPI."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import Query
from fastapi.responses import PlainTextResponse, StreamingResponse

from stack.api.routing import api_router
from stack.batch.job import Batch
from stack.context import CurrentStack, StoredJobs
from stack.errors import BadRequest
from stack.jobs.logs import tail
from stack.store.job_items import JobItems
from stack.store.jobs import Job

Status = Literal["scheduled", "in_progress", "completed", "failed", "cancelled"]

router = api_router("Jobs")

JSON_LINES = "application/jsonl"


@router.get("/v1/jobs", include_in_schema=False)
async def list_jobs(
    jobs: StoredJobs,
    kind: str | None = None,
    status: Status | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """The newest first, without their curves. `after` is the last id of the page before."""
    found = await jobs.list(kind=kind, status=status, after=after, limit=limit)
    data = [_shown(job) for job in found]
    for each in data:
        each["progress"] = {name: value for name, value in each["progress"].items() if name != "curve"}
    return {"data": data, "has_more": len(found) == limit}


@router.get("/v1/jobs/{job_id}", include_in_schema=False)
async def get_job(job_id: str, jobs: StoredJobs) -> dict[str, Any]:
    """A job with its progress, its result, and the first of its items that failed."""
    job = await jobs.get(job_id)
    failed = await JobItems(jobs.database).page(job_id, failed=True, limit=10)
    return _shown(job) | {"failed_items": [{"item": item.item, "error": item.error} for item in failed]}


@router.post("/v1/jobs/{job_id}/cancel", include_in_schema=False)
async def cancel_job(job_id: str, jobs: StoredJobs) -> dict[str, Any]:
    """A job that has not begun is cancelled at once, one in progress as soon as its process stops."""
    return _shown(await jobs.cancel(job_id))


@router.post("/v1/jobs/batch", include_in_schema=False)
async def submit_batch(batch: Batch, stack: CurrentStack) -> dict[str, Any]:
    """Answer the lines of an uploaded file. The same again is the same job."""
    if batch.bucket is None or batch.key is None:
        raise BadRequest("bucket and key name an uploaded file of JSON lines: upload it with POST /v1/files")
    return _shown(await stack.batches.submit(batch))


@router.get("/v1/jobs/{job_id}/results", include_in_schema=False)
async def get_results(job_id: str, stack: CurrentStack) -> StreamingResponse:
    """What came of each row of a completed job, a JSON object a line, in the order of the rows."""
    lines = stack.batches.lines(await stack.jobs.get(job_id))
    first = await anext(lines, b"")  # what goes wrong before it keeps its status
    return StreamingResponse(_chain(first, lines), media_type=JSON_LINES)


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    yield first
    async for lines in rest:
        yield lines


@router.get("/v1/jobs/{job_id}/logs", include_in_schema=False)
async def get_logs(
    job_id: str, stack: CurrentStack, max_bytes: Annotated[int, Query(ge=1, le=1 << 20)] = 1 << 16
) -> PlainTextResponse:
    """The end of what the job's processes printed."""
    await stack.jobs.get(job_id)
    return PlainTextResponse(await tail(stack.settings, stack.storage, job_id, max_bytes))


def _shown(job: Job) -> dict[str, Any]:
    """Without the request, which may be large and is its owner's."""
    times = {name: getattr(job, name) for name in ("created_at", "started_at", "ended_at")}
    return {
        "job_id": job.id,
        "kind": job.kind,
        "status": job.status,
        "cancel_requested": job.cancel_requested,
        "attempt": job.attempt,
        "progress": job.progress,
        "detail": job.detail,
        "result": job.result,
        **{name: None if time is None else time.isoformat() for name, time in times.items()},
    }
