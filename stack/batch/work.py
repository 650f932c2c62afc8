"""Work on a job's rows: here, or by Ray Data's workers when there are many.

Answers come from the live replicas of models, at batch priority: those work on what is asked of them
interactively first, and never wait for a row while others are left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, NamedTuple

from stack.batch.parts import Part, Results, Row, Source, Stores
from stack.batch.rolling import patiently, rolling
from stack.datasets.tables import RowTables
from stack.engine.base import NoMeter
from stack.errors import TRANSIENT, StackError
from stack.files.blobs import Blobs
from stack.files.files import Files
from stack.settings import Settings, get_settings
from stack.store.database import open_database
from stack.store.lance import open_lance
from stack.store.storage import open_storage
from stack.telemetry.recording import open_recording
from stack.tracing import content_allowed, go_on, traceparent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stack.jobs.context import JobContext

AT_ONCE = 64
"""Rows under way in one process: twice as many as a replica computes together."""

INLINE_ROWS = 2000
"""Up to so many rows the job's own process works on: Ray Data's workers take longer to start."""

WAIT_S = 45.0  # shorter than clients and proxies wait

_GROUP_ROWS = 1024  # that a worker of Ray Data takes at a time
_CPUS = 0.01  # that a worker reserves: on a laptop the models have nearly all

Answer = Callable[[Row], Awaitable[Row]]
"""What comes of a row. A StackError that will not pass is what came of it; see `error_of`."""

Work = Callable[[], AbstractAsyncContextManager[Answer]]
"""Opens what answers need, once in each process; Ray Data's workers get it by pickle."""

Parent = tuple[str | None, bool | None]
"""The job's span, and whether what is said may be recorded: see `stack.tracing.go_on`."""


class Outcome(NamedTuple):
    """Of a part that is finished: how many rows it has, and how many of them failed."""

    number: int
    rows: int
    failed: int


class Done(NamedTuple):
    """All of a job's rows. `failed` of them have an error."""

    parts: int
    rows: int
    failed: int


async def work(context: JobContext, source: Source, open_answer: Work) -> Done:
    """Finish all parts that no earlier attempt has.

    Raises what may pass when it does not, after which the job is tried again.
    """
    job_id = context.job.id
    async with open_stores(context.settings) as stores:
        parts = await source.parts(stores)
        results = Results(stores.storage, job_id)
        finished = await results.finished()
        left = [part for part in parts if part.number not in finished]
        total = sum(part.rows for part in parts)
        done = total - sum(part.rows for part in left)
        failed = await results.failed(finished)
        context.progress(phase="working", done=done, total=total, unit="rows", failed=failed)
        if left:
            here = _inline(job_id, source, open_answer, left, stores)
            outcomes = here if total <= INLINE_ROWS else _on_ray(job_id, source, open_answer, left)
            async with aclosing(outcomes):
                async for outcome in outcomes:
                    await context.finish_items({outcome.number: None})
                    done, failed = done + outcome.rows, failed + outcome.failed
                    context.progress(done=done, failed=failed)
    return Done(len(parts), total, failed)


async def answer_now(open_answer: Work, rows: Sequence[Row], at_once: int = AT_ONCE) -> list[Row]:
    """What comes of a request's few rows, in their order; what may pass is waited for a while."""
    results: list[Row] = [{} for _ in rows]
    async with open_answer() as answer:

        async def one(number: int) -> None:
            try:
                results[number] = await patiently(lambda: answer(rows[number]), WAIT_S)
            except StackError as error:
                results[number] = error_of(error)

        async for _ in rolling(one, range(len(rows)), at_once):
            pass
    return results


def error_of(error: StackError) -> Row:
    """What came of a row, when it was an error: as the API answers one."""
    return {"error": {"status": error.status, "title": error.title, "detail": str(error)}}


@asynccontextmanager
async def open_stores(settings: Settings) -> AsyncGenerator[Stores]:
    async with (
        open_storage(settings) as storage,
        open_lance(settings) as lance,
        open_database(settings) as database,
    ):
        yield Stores(storage, RowTables(lance), Files(database, Blobs(database, storage)))


async def _inline(
    job_id: str, source: Source, open_answer: Work, parts: Sequence[Part], stores: Stores
) -> AsyncGenerator[Outcome]:
    async with (
        open_answer() as answer,
        aclosing(_Parts(job_id, source, answer, stores).work(parts)) as outcomes,
    ):
        async for outcome in outcomes:
            yield outcome


class _Parts:
    """Reads parts, has their rows answered, and writes what came of them."""

    def __init__(self, job_id: str, source: Source, answer: Answer, stores: Stores) -> None:
        self._source, self._answer, self._stores = source, answer, stores
        self._results = Results(stores.storage, job_id)
        self._free = asyncio.Semaphore(AT_ONCE)

    def work(self, parts: Sequence[Part]) -> AsyncGenerator[Outcome]:
        """As many parts at a time as have rows enough, and two more, so that none waits for a part's last."""
        return rolling(self._finish, parts, AT_ONCE // parts[0].rows + 2)

    async def _finish(self, part: Part) -> Outcome:
        rows = await self._source.read(part, self._stores)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._row(row)) for row in rows]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        results = [task.result() for task in tasks]
        await self._results.write(part, results)
        return Outcome(part.number, len(rows), sum("error" in result for result in results))

    async def _row(self, row: Row | StackError) -> Row:
        if isinstance(row, StackError):
            return error_of(row)
        async with self._free:
            try:
                return await patiently(lambda: self._answer(row))
            except TRANSIENT:
                raise
            except StackError as error:
                known = {"custom_id": row["custom_id"]} if "custom_id" in row else {}
                return known | error_of(error)


async def _on_ray(
    job_id: str, source: Source, open_answer: Work, parts: Sequence[Part]
) -> AsyncGenerator[Outcome]:
    parent = traceparent(), content_allowed()
    outcomes = await asyncio.to_thread(_outcomes, job_id, source, open_answer, parts, parent)
    try:
        while (found := await asyncio.to_thread(next, outcomes, None)) is not None:
            yield found
    finally:
        outcomes = None  # type: ignore[assignment]  # ends Ray Data's execution


def _outcomes(
    job_id: str, source: Source, open_answer: Work, parts: Sequence[Part], parent: Parent
) -> Iterator[Outcome]:
    import ray.data

    from stack.jobs.cluster import cluster_cpus

    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"part": astuple(part)} for part in parts]
    groups = max(1, sum(part.rows for part in parts) // _GROUP_ROWS)
    # More than one, since the last rows of a group leave a replica idle.
    workers = min(groups, max(2, cluster_cpus() // 8))
    found = ray.data.from_items(rows, override_num_blocks=groups).map_batches(
        Worker,
        fn_constructor_args=(job_id, source, open_answer, parent),
        batch_size=None,  # a group
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
        num_cpus=_CPUS,
    )
    for row in found.iter_rows():
        yield Outcome(*map(int, row["outcome"]))


class Worker:
    """Ray Data calls it with a group of parts. It has stores and an event loop of its own.

    What it does belongs to the job's span, which `parent` names.
    """

    def __init__(self, job_id: str, source: Source, open_answer: Work, parent: Parent) -> None:
        self._loop, self._parent = asyncio.new_event_loop(), parent
        self._open = AsyncExitStack()
        self._parts = self._loop.run_until_complete(self._start(job_id, source, open_answer))

    async def _start(self, job_id: str, source: Source, open_answer: Work) -> _Parts:
        settings = get_settings()
        self._spans = await self._open.enter_async_context(open_recording(settings, NoMeter()))
        stores = await self._open.enter_async_context(open_stores(settings))
        answer = await self._open.enter_async_context(open_answer())
        return _Parts(job_id, source, answer, stores)

    def __call__(self, batch: dict[str, NDArray[np.object_]]) -> dict[str, Any]:
        parts = [Part(*map(int, part)) for part in batch["part"]]
        return {"outcome": [list(found) for found in self._loop.run_until_complete(self._all(parts))]}

    async def _all(self, parts: Sequence[Part]) -> list[Outcome]:
        go_on(*self._parent)
        outcomes = [outcome async for outcome in self._parts.work(parts)]
        if self._spans is not None:
            await self._spans.flush()  # the loop stands still until the next group
        return outcomes
