"""What a job has finished of its work, item by item: one that goes on after a kill leaves these out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select, update

from stack.store.database import Database
from stack.store.jobs import Lease, LeaseLost, holds
from stack.store.tables import job_items, jobs


@dataclass(frozen=True, slots=True)
class Item:
    """One that is finished, well or not. Items are numbered by the job from 0."""

    item: int
    error: str | None = None
    result: dict[str, Any] | None = None


class JobItems:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def finish(self, lease: Lease, items: Mapping[int, Mapping[str, Any] | None]) -> None:
        """Note items as done, with what came of each. Again for the same one is fine: the first word stays.

        Raises LeaseLost.
        """
        texts = {
            item: result if result is None else json.dumps(dict(result)) for item, result in items.items()
        }
        await self._add(lease, [_row(lease, item, result=text) for item, text in texts.items()])

    async def fail(self, lease: Lease, errors: Mapping[int, str]) -> None:
        """Note items as failed, each with its reason; the job itself goes on. Raises LeaseLost."""
        rows = [_row(lease, item, error=error.replace("\0", "")) for item, error in errors.items()]
        await self._add(lease, rows)

    async def _add(self, lease: Lease, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        async with self._database.write() as connection:
            # Locks the row until the items are in, so that nobody can take the job in between.
            held = await connection.execute(update(jobs).where(*holds(lease)).values(fruitless=0))
            if held.rowcount == 0:
                raise LeaseLost(lease.job_id)
            await connection.execute(self._database.insert(job_items).on_conflict_do_nothing(), rows)

    async def finished(self, job_id: str) -> set[int]:
        """The numbers of all items that need no more work."""
        async with self._database.read() as connection:
            query = select(job_items.c.item).where(job_items.c.job_id == job_id)
            return set((await connection.scalars(query)).all())

    async def counts(self, job_id: str) -> tuple[int, int]:
        """How many are done, and how many of them failed."""
        query = select(func.count(), func.count(job_items.c.error)).where(job_items.c.job_id == job_id)
        async with self._database.read() as connection:
            done, failed = (await connection.execute(query)).one()
        return done, failed

    async def page(
        self, job_id: str, *, after: int = -1, limit: int = 1000, failed: bool | None = None
    ) -> list[Item]:
        """Finished items in the order of their numbers, or only those that failed (or did not)."""
        query = select(job_items.c.item, job_items.c.error, job_items.c.result).where(
            job_items.c.job_id == job_id, job_items.c.item > after
        )
        if failed is not None:
            query = query.where(job_items.c.error.is_not(None) if failed else job_items.c.error.is_(None))
        async with self._database.read() as connection:
            rows = await connection.execute(query.order_by(job_items.c.item).limit(limit))
            return [
                Item(item, error, None if result is None else json.loads(result))
                for item, error, result in rows
            ]

    async def unswept(self, ended_before: datetime) -> list[str]:
        """Jobs that ended before then, and whose items and files are still there."""
        query = select(jobs.c.id).where(jobs.c.ended_at < ended_before, ~jobs.c.swept).limit(100)
        async with self._database.read() as connection:
            return list((await connection.scalars(query)).all())

    async def sweep(self, job_id: str) -> None:
        """Remove the items of an ended job; its row stays."""
        async with self._database.write() as connection:
            await connection.execute(delete(job_items).where(job_items.c.job_id == job_id))
            await connection.execute(update(jobs).where(jobs.c.id == job_id).values(swept=True))


def _row(lease: Lease, item: int, error: str | None = None, result: str | None = None) -> dict[str, Any]:
    return {"job_id": lease.job_id, "item": item, "error": error, "result": result}
