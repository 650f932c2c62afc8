"""Work on a job's rows: here, or by Ray Data's workers when there are many.

Answers come from the live replicas of models, at batch priority: those work on what is asked of them
interactively first, and never wait for a row while others are left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, NamedTuple

from stack.batch.parts import Part, Results, Row, Source, part_rows
from stack.batch.rolling import patiently, rolling
from stack.datasets.tables import RowTables
from stack.errors import TRANSIENT, StackError
from stack.settings import Settings, get_settings
from stack.store.lance import open_lance
from stack.store.storage import Storage, open_storage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stack.jobs.context import JobContext

AT_ONCE = 64
"""Rows under way in one process: twice as many as a replica computes together."""

INLINE_ROWS = 2000
"""Up to so many rows the job's own process works on: Ray Data's workers take longer to start."""

_GROUP_ROWS = 1024  # that a worker of Ray Data takes at a time
_CPUS = 0.01  # that a worker reserves: on a laptop the models have nearly all

Answer = Callable[[Row], Awaitable[Row]]
"""What comes of a row. A StackError that will not pass is what came of it; see `error_of`."""

Work = Callable[[], AbstractAsyncContextManager[Answer]]
"""Opens what answers need, once in each process; Ray Data's workers get it by pickle."""


class Outcome(NamedTuple):
    """Of a part that is finished: how many rows it has, and how many of them failed."""

    number: int
    rows: int
    failed: int


async def work(context: JobContext, storage: Storage, source: Source, open_answer: Work) -> int:
    """Finish all parts that no earlier attempt has; returns how many parts there are.

    Raises what may pass when it does not, after which the job is tried again.
    """
    job_id, results = context.job.id, Results(storage, context.job.id)
    parts, finished = await source.parts(storage), await results.finished()
    left = [part for part in parts if part.number not in finished]
    done = sum(part.rows for part in parts) - sum(part.rows for part in left)
    failed = context.shown.get("failed", 0) if finished else 0
    context.progress(phase="working", done=done, total=source.rows, unit="rows", failed=failed)
    if not left:
        return len(parts)
    inline = source.rows <= INLINE_ROWS
    where = _inline(job_id, source, open_answer, left, storage, context.settings)
    outcomes = where if inline else _on_ray(job_id, source, open_answer, left)
    async with aclosing(outcomes):
        async for outcome in outcomes:
            await context.finish_items({outcome.number: None})
            done, failed = done + outcome.rows, failed + outcome.failed
            context.progress(done=done, failed=failed)
    return len(parts)


def error_of(error: StackError) -> Row:
    """What came of a row, when it was an error: as the API answers one."""
    return {"error": {"status": error.status, "title": error.title, "detail": str(error)}}


async def _inline(
    job_id: str,
    source: Source,
    open_answer: Work,
    parts: Sequence[Part],
    storage: Storage,
    settings: Settings,
) -> AsyncGenerator[Outcome]:
    async with open_lance(settings) as lance, open_answer() as answer:
        worker = _Parts(job_id, source, answer, storage, RowTables(lance))
        async with aclosing(worker.work(parts)) as outcomes:
            async for outcome in outcomes:
                yield outcome


class _Parts:
    """Reads parts, has their rows answered, and writes what came of them."""

    def __init__(
        self, job_id: str, source: Source, answer: Answer, storage: Storage, tables: RowTables
    ) -> None:
        self._source, self._answer, self._storage, self._tables = source, answer, storage, tables
        self._results = Results(storage, job_id)
        self._free = asyncio.Semaphore(AT_ONCE)

    def work(self, parts: Sequence[Part]) -> AsyncGenerator[Outcome]:
        """As many parts at a time as have rows enough, and one more, so that none waits for a part's last."""
        return rolling(self._finish, parts, AT_ONCE // part_rows(self._source.rows) + 2)

    async def _finish(self, part: Part) -> Outcome:
        rows = await self._source.read(part, self._storage, self._tables)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._row(row)) for row in rows]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        results = [task.result() for task in tasks]
        await self._results.write(part, results)
        return Outcome(part.number, len(rows), sum("error" in result for result in results))

    async def _row(self, row: Row) -> Row:
        async with self._free:
            try:
                return await patiently(lambda: self._answer(row))
            except TRANSIENT:
                raise
            except StackError as error:
                return error_of(error)


async def _on_ray(
    job_id: str, source: Source, open_answer: Work, parts: Sequence[Part]
) -> AsyncGenerator[Outcome]:
    outcomes = await asyncio.to_thread(_outcomes, job_id, source, open_answer, parts)
    try:
        while (found := await asyncio.to_thread(next, outcomes, None)) is not None:
            yield found
    finally:
        outcomes = None  # type: ignore[assignment]  # ends Ray Data's execution


def _outcomes(job_id: str, source: Source, open_answer: Work, parts: Sequence[Part]) -> Iterator[Outcome]:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"part": astuple(part)} for part in parts]
    groups = max(1, len(parts) * part_rows(source.rows) // _GROUP_ROWS)
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's
    # More than one, since the last rows of a group leave a replica idle.
    workers = min(groups, max(2, int(resources.get("CPU", 1)) // 8))
    found = ray.data.from_items(rows, override_num_blocks=groups).map_batches(
        Worker,
        fn_constructor_args=(job_id, source, open_answer),
        batch_size=None,  # a group
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
        num_cpus=_CPUS,
    )
    for row in found.iter_rows():
        yield Outcome(*map(int, row["outcome"]))


class Worker:
    """Ray Data calls it with a group of parts. It has stores and an event loop of its own."""

    def __init__(self, job_id: str, source: Source, open_answer: Work) -> None:
        self._loop = asyncio.new_event_loop()
        self._open = AsyncExitStack()
        self._parts = self._loop.run_until_complete(self._start(job_id, source, open_answer))

    async def _start(self, job_id: str, source: Source, open_answer: Work) -> _Parts:
        settings = get_settings()
        storage = await self._open.enter_async_context(open_storage(settings))
        lance = await self._open.enter_async_context(open_lance(settings))
        answer = await self._open.enter_async_context(open_answer())
        return _Parts(job_id, source, answer, storage, RowTables(lance))

    def __call__(self, batch: dict[str, NDArray[np.object_]]) -> dict[str, Any]:
        parts = [Part(*map(int, part)) for part in batch["part"]]
        return {"outcome": [list(found) for found in self._loop.run_until_complete(self._all(parts))]}

    async def _all(self, parts: Sequence[Part]) -> list[Outcome]:
        return [outcome async for outcome in self._parts.work(parts)]
