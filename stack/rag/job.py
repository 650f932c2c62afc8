"""Large insertions: the documents go into a file, from which a job of kind `ingest` takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from stack.errors import BadRequest, StackError
from stack.jobs.logs import files_of
from stack.rag.ingest import check_ids
from stack.rag.load import inline_chars
from stack.schemas.tools import InsertRequest, RAGDocument
from stack.store.job_items import JobItems
from stack.store.jobs import Job, Jobs, new_id
from stack.store.storage import Storage
from stack.vector.databases import VectorDatabases

KIND = "ingest"
LARGE_DOCUMENTS = 200
LARGE_CHARS = 8 << 20
WAIT_S = 45.0  # shorter than clients and proxies wait
POLL_S = 0.25
SHOWN_ERRORS = 3


class IngestFailed(StackError):
    title = "Ingest Failed"


def is_large(documents: Sequence[RAGDocument]) -> bool:
    """Whether an interactive request should not wait for these."""
    return len(documents) > LARGE_DOCUMENTS or sum(map(inline_chars, documents)) > LARGE_CHARS


async def submit(request: InsertRequest, jobs: Jobs, storage: Storage, databases: VectorDatabases) -> Job:
    """Store the documents, and have them ingested. Raises BadRequest or NotFound for what is known now."""
    check_ids(request.documents)
    await databases.get(request.vector_db_id)
    job_id = new_id(KIND)
    await storage.write(documents_path(job_id), await asyncio.to_thread(_lines, request.documents))
    fields = {"vector_db_id": request.vector_db_id, "chunk_size_in_tokens": request.chunk_size_in_tokens}
    return await jobs.submit(KIND, {**fields, "documents": len(request.documents)}, job_id)


async def wait(job: Job, jobs: Jobs) -> Job:
    """The job when it has ended, or as it is after a while."""
    deadline = asyncio.get_running_loop().time() + WAIT_S
    while not job.ended and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(POLL_S)
        job = await jobs.get(job.id)
    return job


async def check(job: Job, jobs: Jobs) -> None:
    """Raises what went wrong in a job that ended: all of it, or some of its documents."""
    if job.status == "failed":
        raise IngestFailed(f"job {job.id} failed: {job.detail or 'its log tells why'}")
    if job.status == "cancelled":
        raise BadRequest(f"job {job.id} was cancelled; some documents may have been inserted")
    items = JobItems(jobs.database)
    _, failed = await items.counts(job.id)
    if failed:
        page = await items.page(job.id, failed=True, limit=SHOWN_ERRORS)
        more = f"; and {failed - len(page)} more" if failed > len(page) else ""
        errors = "; ".join(item.error or "" for item in page)
        raise BadRequest(
            f"{failed} of the documents could not be inserted, the others are (job {job.id}): {errors}{more}"
        )


def described(job: Job) -> dict[str, str]:
    """Headers of an answer that tell of a job."""
    return {"x-job-id": job.id, "location": f"/v1/jobs/{job.id}"}


def documents_path(job_id: str) -> str:
    """The job's documents in the storage, one a line."""
    return f"{files_of(job_id)}/documents.jsonl"


def _lines(documents: Sequence[RAGDocument]) -> bytes:
    return b"".join(document.model_dump_json().encode() + b"\n" for document in documents)
