"""The reconciler and the runner with real processes, killed in every way."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from datetime import timedelta

import pytest

from stack.errors import BadRequest
from stack.jobs.logs import log_path
from stack.schemas.telemetry import QueryCondition
from stack.store.jobs import Job, LeaseLost
from stack.telemetry.conditions import checked
from stack.telemetry.store import open_spans
from stack.tracing import go_on
from tests.jobs.conftest import Farm


async def test_a_job_runs_from_submission_to_its_result(farm: Farm) -> None:
    job = await farm.step_until(await farm.submit(items=3))
    assert (job.status, job.attempt, job.result) == ("completed", 1, {"items": 3})
    assert job.progress == {"done": 3, "total": 3}
    assert farm.effects() == [0, 1, 2]
    assert "attempt 1: 0 items are there" in farm.log(job)
    assert len(farm.launcher.pids) == 1


async def test_a_job_belongs_to_the_trace_that_submitted_it(farm: Farm) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

    async def submit() -> Job:
        go_on(f"00-{trace}-{parent}-01")
        return await farm.submit(items=1, phase="counting")

    job = await farm.step_until(await asyncio.create_task(submit()))
    assert job.status == "completed"
    this = checked([QueryCondition(key="stack.job_id", op="eq", value=job.id)])
    async with open_spans(farm.settings) as spans, asyncio.timeout(20):
        while farm.launcher.processes[job.id].alive:  # noqa: ASYNC110  # it writes them last
            await asyncio.sleep(0.05)
        (found,) = await spans.find(this, 2)
        _, stage = await spans.below([found])
    assert (found.trace_id, found.parent_span_id, found.name) == (trace, parent, "job count")
    assert (stage.name, stage.trace_id) == ("stage counting", trace)


async def test_killed_at_random_it_finishes_each_item(farm: Farm) -> None:
    """An effect is stored before its item is noted, so one may be stored again, but none is missing."""
    job, kills = await farm.submit(items=40, pause_s=0.02), 3
    draw = random.Random(7)
    for _ in range(kills):
        done, _ = await farm.items.counts(job.id)
        await farm.until_items(job, done + 1)
        await asyncio.sleep(draw.random() * 0.1)
        os.kill(farm.launcher.processes[job.id].pid, signal.SIGKILL)
    job = await farm.step_until(job)
    assert (job.status, job.attempt, job.fruitless) == ("completed", kills + 1, 0)
    items = await farm.items.page(job.id)
    assert [item.item for item in items] == list(range(40))
    assert len({item.result["attempt"] for item in items if item.result}) == kills + 1
    assert set(farm.effects()) == set(range(40))
    assert max(Counter(farm.effects()).values()) <= 2


async def test_a_process_that_is_asked_to_end_gives_its_job_back(farm: Farm) -> None:
    job = await farm.submit(items=20, pause_s=0.02)
    await farm.until_items(job, 2)
    os.kill(farm.launcher.processes[job.id].pid, signal.SIGTERM)
    await asyncio.to_thread(farm.launcher.processes[job.id].wait)
    given_back = await farm.jobs.get(job.id)
    assert (given_back.status, given_back.runner, given_back.fruitless) == ("in_progress", None, 0)
    job = await farm.step_until(job)
    assert (job.status, job.attempt) == ("completed", 2)
    assert farm.effects() == list(range(20))


async def test_it_ends_with_its_supervisor(farm: Farm) -> None:
    """The pipe to the supervisor closes when that dies."""
    job = await farm.submit(items=1000, pause_s=0.02)
    await farm.until_items(job, 1)
    process = farm.launcher.processes[job.id]
    assert process._process.stdin is not None
    process._process.stdin.close()
    await asyncio.wait_for(asyncio.to_thread(process.wait), 10)
    assert (await farm.jobs.get(job.id)).runner is None


async def test_a_zombie_writes_nothing_more(farm: Farm) -> None:
    """A process stands still until its job is another's, and wakes up then."""
    job = await farm.submit(items=30, pause_s=0.02)
    await farm.until_items(job, 2)
    zombie = farm.launcher.processes.pop(job.id)  # for the reconciler it is gone
    os.kill(zombie.pid, signal.SIGSTOP)
    done = await farm.step_until(job)
    assert (done.status, done.attempt) == ("completed", 2)
    os.kill(zombie.pid, signal.SIGCONT)
    assert await asyncio.wait_for(asyncio.to_thread(zombie.wait), 10) in (0, 2)
    assert await farm.jobs.get(job.id) == done
    assert "no longer held by this process" in farm.log(job)


async def test_cancel_stops_a_running_job(farm: Farm) -> None:
    job = await farm.submit(items=1000, pause_s=0.02)
    await farm.until_items(job, 1)
    await farm.jobs.cancel(job.id)
    job = await farm.step_until(job)
    assert (job.status, job.attempt) == ("cancelled", 1)
    with pytest.raises(BadRequest, match="cancelled already"):
        await farm.jobs.cancel(job.id)


async def test_cancel_kills_a_process_that_does_not_listen(farm: Farm) -> None:
    job = await farm.step_until(await farm.submit(trouble="deaf"), "in_progress")
    farm.hurry = 8.0
    await asyncio.sleep(1.0)  # it is deaf by now
    await farm.jobs.cancel(job.id)
    job = await farm.step_until(job)
    assert (job.status, job.attempt) == ("cancelled", 1)
    assert not await farm.launcher.running()


async def test_cancel_of_a_job_whose_process_is_dead(farm: Farm) -> None:
    job = await farm.submit(items=1000, pause_s=0.02)
    await farm.until_items(job, 1)
    os.kill(farm.launcher.processes[job.id].pid, signal.SIGKILL)
    await farm.jobs.cancel(job.id)
    assert (await farm.step_until(job)).status == "cancelled"
    assert len(farm.launcher.pids) == 1


async def test_a_job_that_dies_again_and_again_fails(farm: Farm) -> None:
    farm.hurry = 8.0
    farm.reconciler = farm.new_reconciler(attempts=3)
    job = await farm.step_until(await farm.submit(trouble="die"))
    assert (job.status, job.attempt) == ("failed", 3)
    assert job.detail is not None
    assert job.detail.startswith("its process died 3 times in a row without finishing anything")


async def test_deaths_between_finished_items_do_not_count(farm: Farm) -> None:
    farm.reconciler = farm.new_reconciler(attempts=2)
    job = await farm.submit(items=8, pause_s=0.05)
    for _ in range(3):
        done, _ = await farm.items.counts(job.id)
        await farm.until_items(job, done + 1)
        os.kill(farm.launcher.processes[job.id].pid, signal.SIGKILL)
    job = await farm.step_until(job)
    assert (job.status, job.attempt) == ("completed", 4)


async def test_an_entry_point_that_cannot_start_fails(farm: Farm) -> None:
    farm.hurry = 8.0
    farm.reconciler = farm.new_reconciler(attempts=2)
    job = await farm.step_until(await farm.submit("broken"))
    assert (job.status, job.attempt) == ("failed", 0)
    assert job.detail is not None
    assert "ended 2 times before it began to work" in job.detail
    assert "no such library" in farm.log(job)


@pytest.mark.parametrize(
    ("trouble", "detail"),
    [
        ("bad", "the file has no rows: add some"),
        ("bug", "KeyError: an error that nobody foresaw; `stack jobs logs"),
    ],
)
async def test_a_failure_is_told_without_a_traceback(farm: Farm, trouble: str, detail: str) -> None:
    job = await farm.step_until(await farm.submit(trouble=trouble))
    assert (job.status, job.attempt) == ("failed", 1)
    assert job.detail is not None
    assert job.detail.startswith(detail)
    assert "secret" not in job.detail
    assert "Traceback" in farm.log(job)


async def test_trouble_that_may_pass_is_tried_again(farm: Farm) -> None:
    farm.hurry = 8.0
    job = await farm.step_until(await farm.submit(items=2, trouble="busy"))
    assert (job.status, job.attempt, job.detail) == ("completed", 3, None)


async def test_a_new_reconciler_goes_on(farm: Farm) -> None:
    job = await farm.submit(items=15, pause_s=0.02)
    await farm.until_items(job, 1)
    farm.reconciler = farm.new_reconciler()
    job = await farm.step_until(job)
    assert (job.status, job.attempt) == ("completed", 1)
    assert len(farm.launcher.pids) == 1


async def test_as_many_at_once_as_allowed(farm: Farm) -> None:
    farm.reconciler = farm.new_reconciler(at_once=1)
    first, second = await farm.submit(items=2), await farm.submit(items=2)
    await farm.reconciler.step()
    await farm.reconciler.step()
    assert list(await farm.launcher.running()) == [first.id]
    assert (await farm.step_until(second)).status == "completed"
    assert (await farm.jobs.get(first.id)).status == "completed"


async def test_a_job_held_by_hand_is_left_alone_until_its_lease_runs_out(farm: Farm) -> None:
    job = await farm.submit()
    lease = await farm.jobs.claim(job.id, "laptop-123")
    await farm.reconciler.step()
    assert not farm.launcher.pids
    farm.jobs._lease = timedelta(0)
    await farm.jobs.renew(lease)
    assert (await farm.step_until(job)).status == "completed"
    with pytest.raises(LeaseLost):
        await farm.jobs.renew(lease)


async def test_what_an_ended_job_left_is_swept(farm: Farm) -> None:
    async def sweep(job_id: str) -> None:
        log_path(farm.settings.home, job_id).unlink()

    job = await farm.step_until(await farm.submit())
    farm.reconciler = farm.new_reconciler(retention=timedelta(0), sweep_files=sweep)
    await farm.reconciler.step()
    assert await farm.items.finished(job.id) == set()
    assert not log_path(farm.settings.home, job.id).exists()
    assert (await farm.jobs.get(job.id)).status == "completed"
