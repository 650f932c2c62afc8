"""Requests that a job answers: the same request again waits for the same job, and gets what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from stack.batch.work import WAIT_S
from stack.errors import BadRequest, NotFound, NotReady, StackError
from stack.store.jobs import Job, Jobs
from stack.store.storage import Lost

T = TypeVar("T")

RETRY_AFTER_S = 10
_POLL_S = 0.25


class JobFailed(StackError):
    title = "Job Failed"


class SharedJobs:
    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def result(
        self, key: str, submit: Callable[[str], Awaitable[Job]], read: Callable[[Job], Awaitable[T]]
    ) -> T:
        """What `read` finds of the job that `key` names, which `submit` adds under the id that it is given.

        A job that failed, was cancelled, or whose files are gone (`read` raises Lost) is followed by another.
        Raises NotReady while the job works, and JobFailed.
        """
        job = await self.begin(key, submit)
        if job.status == "completed":
            try:
                return await read(job)
            except Lost:
                job = await self.begin(key, submit, after=job)
        job = await self._wait(job)
        if job.status != "completed":
            reason = job.detail or f"`stack jobs logs {job.id}` tells why"
            raise JobFailed(f"job {job.id} is {job.status}: {reason}; send the request again for another")
        return await read(job)

    async def begin(self, key: str, submit: Callable[[str], Awaitable[Job]], after: Job | None = None) -> Job:
        """The job that works, has worked, or works from now on; another one than `after`."""
        last, number = None, 1
        while (found := await self._find(f"{key}-{number}")) is not None:
            last, number = found, number + 1
        useful = last is not None and (last.status == "completed" or not last.ended)
        if last is not None and useful and (after is None or last.id != after.id):
            return last
        return await self._submit(submit, f"{key}-{number}")

    async def _find(self, job_id: str) -> Job | None:
        try:
            return await self._jobs.get(job_id)
        except NotFound:
            return None

    async def _submit(self, submit: Callable[[str], Awaitable[Job]], job_id: str) -> Job:
        try:
            return await submit(job_id)
        except BadRequest:  # the same request came twice
            found = await self._find(job_id)
            if found is None:
                raise
            return found

    async def _wait(self, job: Job) -> Job:
        deadline = asyncio.get_running_loop().time() + WAIT_S
        while not job.ended:
            if asyncio.get_running_loop().time() > deadline:
                done, total = job.progress.get("done", 0), job.progress.get("total", "all")
                raise NotReady(
                    f"job {job.id} has done {done} of {total} and goes on: send the same request again for "
                    f"what comes of it, or see `stack jobs show {job.id} --follow`",
                    RETRY_AFTER_S,
                )
            await asyncio.sleep(_POLL_S)
            job = await self._jobs.get(job.id)
        return job
