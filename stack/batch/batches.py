"""BatchInference: many completions in one request.

A few are answered while the request waits. More become a job, which goes on whatever happens to the request:
the same request again waits for the same job, and gets its answers when there are all.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from pydantic_core import to_json

from stack.batch.answers import Asked, answering
from stack.batch.job import KIND, Batch, input_path
from stack.batch.parts import Results, Row
from stack.batch.shared import SharedJobs
from stack.batch.work import answer_now
from stack.errors import BadRequest, NotFound, StackError
from stack.files.files import Files
from stack.models.serving import Serving
from stack.store.jobs import Job, Jobs
from stack.store.storage import Lost, Storage

DIRECT = 200
"""Up to so many items are answered by the request's own process."""

MAX_ITEMS = 100_000


class Batches:
    def __init__(self, serving: Serving, jobs: Jobs, storage: Storage, files: Files) -> None:
        self.serving, self._jobs, self._storage, self._files = serving, jobs, storage, files

    async def answer(
        self, asked: Asked, rows: Sequence[Row], provider_data: Mapping[str, Any] | None = None
    ) -> list[Row]:
        """What came of each row, in their order: a `response` or an `error`.

        Raises NotFound and BadRequest for a model that cannot be asked; the error of the first row when all
        fail; NotReady while a job works on them.
        """
        if len(rows) > MAX_ITEMS:
            raise BadRequest(
                f"one request has at most {MAX_ITEMS} items, not {len(rows)}; "
                "`stack batch run` takes a file of any size"
            )
        await self.serving(asked.options["model_id"], "llm", provider_data)
        if len(rows) <= DIRECT:
            results = await self._directly(asked, rows, provider_data)
        else:
            results = await self._by_job(asked, rows)
        if results and all("error" in result for result in results):
            error = results[0]["error"]
            raise (BadRequest if error["status"] < 500 else StackError)(error["detail"])
        return results

    async def submit(self, batch: Batch) -> Job:
        """A job for an uploaded file of lines; the one that there is, when it is the same again.

        Raises NotFound for a file or a model that is not there.
        """
        assert batch.bucket is not None
        assert batch.key is not None
        batch.asked.check()
        await self.serving.find(batch.asked.options["model_id"])
        file = await self._files.get(batch.bucket, batch.key)
        request = batch.model_dump(mode="json")
        said = json.dumps([request, file.blob], sort_keys=True).encode()
        key = f"{KIND}-{hashlib.sha256(said).hexdigest()[:24]}"
        return await SharedJobs(self._jobs).begin(
            key, lambda job_id: self._jobs.submit(KIND, request, job_id)
        )

    async def lines(self, job: Job) -> AsyncGenerator[bytes]:
        """What came of a completed job's rows, as JSON lines. Raises BadRequest or NotFound."""
        parts = (job.result or {}).get("parts")
        if job.status != "completed" or not isinstance(parts, int):
            raise BadRequest(f"job {job.id!r} is {job.status} and has no results of rows")
        try:
            async for lines in Results(self._storage, job.id).lines(parts):
                yield lines
        except Lost:
            raise NotFound("the results of job", job.id) from None

    async def _directly(
        self, asked: Asked, rows: Sequence[Row], provider_data: Mapping[str, Any] | None
    ) -> list[Row]:
        return await answer_now(lambda: answering(lambda: nullcontext(self), asked, provider_data), rows)

    async def _by_job(self, asked: Asked, rows: Sequence[Row]) -> list[Row]:
        lines = await asyncio.to_thread(lambda: b"".join(to_json(row) + b"\n" for row in rows))
        said = json.dumps(asked.model_dump(mode="json"), sort_keys=True).encode()
        key = f"{KIND}-{hashlib.sha256(said + lines).hexdigest()[:24]}"

        async def submit(job_id: str) -> Job:
            await self._storage.write(input_path(job_id), lines)
            request = Batch(asked=asked).model_dump(mode="json")
            return await self._jobs.submit(KIND, request, job_id)

        return await SharedJobs(self._jobs).result(key, submit, self._results)

    async def _results(self, job: Job) -> list[Row]:
        parts = (job.result or {})["parts"]
        results = Results(self._storage, job.id)
        return [result async for page in results.read(parts) for result in page]
