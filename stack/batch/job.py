"""The job of kind `batch`: its rows are answered, and what came of them is kept in the job's folder."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from stack.batch.answers import Asked
from stack.batch.parts import Lines, Source, UploadedLines
from stack.batch.work import Work, work
from stack.jobs.context import JobContext
from stack.jobs.logs import files_of

KIND = "batch"


class Batch(BaseModel):
    """What is submitted. Its rows are in a file of the Files API, or else in `input_path` of its id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    asked: Asked
    bucket: str | None = None
    key: str | None = None

    def source(self, job_id: str) -> Source:
        if self.bucket is None or self.key is None:
            return Lines(input_path(job_id))
        return UploadedLines(self.bucket, self.key)


def input_path(job_id: str) -> str:
    return f"{files_of(job_id)}/input.jsonl"


async def run(context: JobContext, open_answer: Work) -> dict[str, Any]:
    """Answer what no earlier attempt has. The result counts rows, parts, and rows that failed."""
    batch = Batch.model_validate(context.job.request)
    done = await work(context, batch.source(context.job.id), open_answer)
    return done._asdict()
