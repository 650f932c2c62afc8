"""Durable work: one row for each job, which a runner holds by a lease while it works.

A lease is fenced: what a runner writes counts only while the row names that runner. One that was thought
dead, and whose job went to another, is refused with LeaseLost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import uuid4

from sqlalchemy import ColumnElement, Row, Select, and_, case, func, or_, select, update
from sqlalchemy.exc import IntegrityError

from stack.errors import BadRequest, NotFound, StackError
from stack.schemas.common import JobStatus
from stack.store.database import Database
from stack.store.tables import jobs
from stack.tracing import content_allowed, traceparent

LEASE_S = 15.0
RENEW_S = 3.0
MAX_DETAIL = 2000  # characters of a job's `detail`

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_ACTIVE = ("scheduled", "in_progress")


@dataclass(frozen=True, slots=True)
class Job:
    id: str
    kind: str
    request: dict[str, Any]
    status: JobStatus
    attempt: int  # how often a runner has taken it
    fruitless: int  # attempts since something was last finished
    runner: str | None  # who holds the lease
    lease_until: datetime | None
    cancel_requested: bool
    progress: dict[str, Any]
    detail: str | None  # why it failed, or what the last attempt stumbled over
    result: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    traceparent: str | None = None  # the span that submitted it
    record_content: bool | None = None  # as who submitted it; None: as the settings say

    @property
    def ended(self) -> bool:
        return self.status not in _ACTIVE

    def lease_ran_out(self, now: datetime) -> bool:
        """Whether it is in progress, but by nobody who is alive."""
        return self.status == "in_progress" and (self.lease_until is None or self.lease_until < now)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a job. `runner` is unique for each claim."""

    job: Job
    runner: str

    @property
    def job_id(self) -> str:
        return self.job.id


class LeaseLost(StackError):
    """Another runner has the job, or it ended meanwhile: stop without writing anything."""

    title = "Lease Lost"

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)

    def __str__(self) -> str:
        return "job {!r} is no longer held by this process".format(*self.args)


class ClaimRefused(StackError):
    """The job cannot be worked on now; the message says why."""

    title = "Claim Refused"


class Jobs:
    def __init__(self, database: Database, lease_s: float = LEASE_S) -> None:
        self.database, self._lease = database, timedelta(seconds=lease_s)

    async def submit(self, kind: str, request: Mapping[str, Any], job_id: str | None = None) -> Job:
        """Add a job, which the reconciler starts. Raises BadRequest for an id that is taken or odd."""
        job_id = new_id(kind) if job_id is None else job_id
        if not _ID.match(job_id):
            raise BadRequest(
                f"the job's id {job_id[:80]!r} is not allowed: write up to 64 letters, digits, '-', '_' and "
                "'.', beginning with a letter or digit"
            )
        row = {
            "id": job_id,
            "kind": kind,
            "request": json.dumps(dict(request)),
            "status": "scheduled",
            "attempt": 0,
            "fruitless": 0,
            "cancel_requested": False,
            "progress": "{}",
            "created_at": _now(),
            "swept": False,
            "traceparent": traceparent(),
            "record_content": content_allowed(),
        }
        try:
            async with self.database.write() as connection:
                await connection.execute(jobs.insert(), row)
        except IntegrityError:
            raise BadRequest(f"there is a job {job_id!r} already: choose another id") from None
        return await self.get(job_id)

    async def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        if not _ID.match(job_id):  # Postgres would choke on a NUL
            raise NotFound("job", job_id)
        async with self.database.read() as connection:
            row = (await connection.execute(select(jobs).where(jobs.c.id == job_id))).one_or_none()
        if row is None:
            raise NotFound("job", job_id)
        return _job(row)

    async def list(
        self,
        *,
        kind: str | None = None,
        status: JobStatus | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Sequence[Job]:
        """The newest first; `after` is the id of the last job of the page before. Raises NotFound for it."""
        query = select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
        if kind is not None:
            query = query.where(jobs.c.kind == kind)
        if status is not None:
            query = query.where(jobs.c.status == status)
        if after is not None:
            last = await self.get(after)
            earlier, same = jobs.c.created_at < last.created_at, jobs.c.created_at == last.created_at
            query = query.where(or_(earlier, and_(same, jobs.c.id < last.id)))
        return await self._select(query)

    async def ids(self, kinds: Sequence[str]) -> Sequence[str]:
        """Of all jobs of these kinds, the newest first."""
        query = select(jobs.c.id).where(jobs.c.kind.in_(kinds))
        async with self.database.read() as connection:
            found = await connection.scalars(query.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()))
            return found.all()

    async def requests(self, kinds: Sequence[str]) -> Sequence[tuple[str, dict[str, Any]]]:
        """The id and what was submitted, of all jobs of these kinds."""
        query = select(jobs.c.id, jobs.c.request).where(jobs.c.kind.in_(kinds))
        async with self.database.read() as connection:
            return [(job_id, json.loads(text)) for job_id, text in await connection.execute(query)]

    async def counts(self) -> dict[tuple[str, str], int]:
        """How many jobs there are of each kind and status."""
        query = select(jobs.c.kind, jobs.c.status, func.count()).group_by(jobs.c.kind, jobs.c.status)
        async with self.database.read() as connection:
            return {(kind, status): count for kind, status, count in await connection.execute(query)}

    async def active(self) -> Sequence[Job]:
        """All that are scheduled or in progress, the oldest first."""
        return await self._select(select(jobs).where(jobs.c.status.in_(_ACTIVE)).order_by(jobs.c.created_at))

    async def _select(self, query: Select[Any]) -> Sequence[Job]:
        async with self.database.read() as connection:
            return [_job(row) for row in await connection.execute(query)]

    async def cancel(self, job_id: str) -> Job:
        """End a scheduled job at once, ask the runner of one in progress. Raises BadRequest if it ended."""
        scheduled = jobs.c.status == "scheduled"
        ask = (
            update(jobs)
            .where(jobs.c.id == job_id, jobs.c.status.in_(_ACTIVE))
            .values(
                cancel_requested=True,
                status=case((scheduled, "cancelled"), else_=jobs.c.status),
                ended_at=case((scheduled, _now()), else_=jobs.c.ended_at),
            )
        )
        async with self.database.write() as connection:
            asked = await connection.execute(ask)
        job = await self.get(job_id)
        if asked.rowcount == 0:
            raise BadRequest(f"job {job_id!r} is {job.status} already and cannot be cancelled")
        return job

    # What a runner does.

    async def claim(self, job_id: str, runner: str) -> Lease:
        """Take the job: only one runner gets it. Raises ClaimRefused or NotFound."""
        now, holder = _now(), f"{runner[:48]}.{uuid4().hex[:12]}"
        free = or_(jobs.c.lease_until.is_(None), jobs.c.lease_until < now)
        claim = (
            update(jobs)
            .where(jobs.c.id == job_id, jobs.c.status.in_(_ACTIVE), ~jobs.c.cancel_requested, free)
            .values(
                status="in_progress",
                runner=holder,
                lease_until=now + self._lease,
                attempt=jobs.c.attempt + 1,
                fruitless=jobs.c.fruitless + 1,
                started_at=func.coalesce(jobs.c.started_at, now),
            )
            .returning(*jobs.c)
        )
        async with self.database.write() as connection:
            row = (await connection.execute(claim)).one_or_none()
        if row is not None:
            return Lease(_job(row), holder)
        job = await self.get(job_id)
        if job.ended or job.cancel_requested:
            raise ClaimRefused(f"job {job_id!r} is {job.status if job.ended else 'being cancelled'}")
        raise ClaimRefused(f"job {job_id!r} is being worked on by {job.runner}")

    async def renew(self, lease: Lease, progress: Mapping[str, Any] | None = None) -> bool:
        """Keep the lease, and show progress; tells whether cancellation is asked. Raises LeaseLost."""
        values: dict[str, Any] = {"lease_until": _now() + self._lease}
        if progress is not None:
            values["progress"] = json.dumps(dict(progress))
        held = update(jobs).where(*holds(lease)).values(values).returning(jobs.c.cancel_requested)
        async with self.database.write() as connection:
            asked = await connection.scalar(held)
        if asked is None:
            raise LeaseLost(lease.job_id)
        return bool(asked)

    async def show(self, lease: Lease, progress: Mapping[str, Any]) -> None:
        """Show progress, as a process does that works for the lease's holder. Raises LeaseLost."""
        await self._change(holds(lease), lease.job_id, progress=json.dumps(dict(progress)))

    async def release(self, lease: Lease, trouble: str | None = None) -> None:
        """Give the job back, to be gone on with at once. Raises LeaseLost.

        That counts as a fruitless attempt only with `trouble`, which may be over the next time.
        """
        free: dict[str, Any] = {"runner": None, "lease_until": None}
        if trouble is None:
            free["fruitless"] = case((jobs.c.fruitless > 0, jobs.c.fruitless - 1), else_=0)
        else:
            free["detail"] = _text(trouble)
        await self._change(holds(lease), lease.job_id, **free)

    async def finish(self, lease: Lease, result: Mapping[str, Any] | None = None) -> None:
        """Raises LeaseLost, as do the others."""
        await self._end(
            holds(lease), lease.job_id, "completed", detail=None, result=json.dumps(dict(result or {}))
        )

    async def fail(self, lease: Lease, detail: str) -> None:
        await self._end(holds(lease), lease.job_id, "failed", detail=_text(detail))

    async def cancelled(self, lease: Lease) -> None:
        await self._end(holds(lease), lease.job_id, "cancelled")

    # What the reconciler does. `job` is the row as it saw it: one that changed meanwhile is left alone.

    async def take_away(self, job: Job) -> None:
        """The process that held the lease is known to be dead: the job is free before its lease runs out."""
        await self._change(_unchanged(job), job.id, runner=None, lease_until=None)

    async def end(self, job: Job, status: JobStatus, detail: str | None = None) -> None:
        """End a job that nobody works on. Raises LeaseLost if it changed."""
        await self._end(_unchanged(job), job.id, status, detail=detail and _text(detail))

    async def _end(
        self, where: Sequence[ColumnElement[bool]], job_id: str, status: JobStatus, **values: Any
    ) -> None:
        ended = {"status": status, "ended_at": _now(), "runner": None, "lease_until": None}
        await self._change(where, job_id, **ended, **values)

    async def _change(self, where: Sequence[ColumnElement[bool]], job_id: str, **values: Any) -> None:
        async with self.database.write() as connection:
            changed = await connection.execute(update(jobs).where(*where).values(**values))
        if changed.rowcount == 0:
            raise LeaseLost(job_id)


def new_id(kind: str) -> str:
    """For a job whose files are written before its row."""
    return f"{kind}-{uuid4().hex[:12]}"


def holds(lease: Lease) -> tuple[ColumnElement[bool], ...]:
    """The fence: what every write of a runner is conditional on."""
    return jobs.c.id == lease.job_id, jobs.c.runner == lease.runner, jobs.c.status == "in_progress"


def _unchanged(job: Job) -> tuple[ColumnElement[bool], ...]:
    same_runner = jobs.c.runner.is_not_distinct_from(job.runner)
    return jobs.c.id == job.id, jobs.c.status == job.status, same_runner, jobs.c.attempt == job.attempt


def _now() -> datetime:
    return datetime.now(UTC)


def _text(detail: str) -> str:
    """What Postgres can store: no NUL and no half of a surrogate pair."""
    text = detail.encode("utf-8", "replace").decode().replace("\0", "")
    return text if len(text) <= MAX_DETAIL else text[:MAX_DETAIL] + "…"


def _job(row: Row[Any]) -> Job:
    values = dict(row._mapping)
    del values["swept"]
    for name in ("request", "progress", "result"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return Job(**cast("dict[str, Any]", values))
