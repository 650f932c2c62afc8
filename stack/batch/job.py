"""The job of kind `batch`: its rows are answered, and what came of them is kept in the job's folder."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from stack.batch.answers import Asked
from stack.batch.parts import Lines
from stack.batch.work import Work, work
from stack.jobs.context import JobContext
from stack.jobs.logs import files_of
from stack.store.storage import Storage

KIND = "batch"


class Batch(BaseModel):
    """What is submitted. Its rows are in `input_path` of its id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["batch"] = "batch"
    asked: Asked
    rows: int


def input_path(job_id: str) -> str:
    return f"{files_of(job_id)}/input.jsonl"


async def run(context: JobContext, storage: Storage, open_answer: Work) -> dict[str, Any]:
    """Answer what no earlier attempt has. The result counts rows, parts, and rows that failed."""
    batch = Batch.model_validate(context.job.request)
    parts = await work(context, storage, Lines(input_path(context.job.id), batch.rows), open_answer)
    return {"rows": batch.rows, "parts": parts, "failed": context.shown.get("failed", 0)}
