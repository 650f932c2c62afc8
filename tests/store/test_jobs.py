from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from stack.errors import BadRequest, NotFound
from stack.store.database import Database
from stack.store.job_items import Item, JobItems
from stack.store.jobs import ClaimRefused, Job, Jobs, Lease, LeaseLost

SOON_S = 0.02


@pytest.fixture
def jobs(database: Database) -> Jobs:
    return Jobs(database)


@pytest.fixture
def items(database: Database) -> JobItems:
    return JobItems(database)


async def claimed(jobs: Jobs, **request: object) -> Lease:
    return await jobs.claim((await jobs.submit("ingest", request)).id, "here")


async def test_a_job_from_submission_to_completion(jobs: Jobs) -> None:
    job = await jobs.submit("ingest", {"text": "a\0b\ud800", "none": None})
    assert job.id.startswith("ingest-")
    assert (job.status, job.attempt, job.runner, job.progress) == ("scheduled", 0, None, {})
    assert job.request == {"text": "a\0b\ud800", "none": None}
    lease = await jobs.claim(job.id, "here")
    held = await jobs.get(job.id)
    assert (held.status, held.attempt, held.runner) == ("in_progress", 1, lease.runner)
    assert held.lease_until is not None
    assert held.lease_until > datetime.now(UTC) + timedelta(seconds=10)
    assert await jobs.renew(lease, {"done": 3}) is False
    assert (await jobs.get(job.id)).progress == {"done": 3}
    await jobs.finish(lease, {"chunks": 7})
    ended = await jobs.get(job.id)
    assert (ended.status, ended.result, ended.runner) == ("completed", {"chunks": 7}, None)
    assert ended.ended
    assert ended.started_at is not None
    assert ended.ended_at is not None
    assert ended.created_at <= ended.started_at <= ended.ended_at


async def test_an_id_is_used_once(jobs: Jobs) -> None:
    await jobs.submit("ingest", {}, "mine")
    with pytest.raises(BadRequest, match="there is a job 'mine' already"):
        await jobs.submit("ingest", {}, "mine")


@pytest.mark.parametrize("job_id", ["..", "a/b", "", "a" * 65, "a\0", ".hidden", "a b", "ü"])
async def test_an_id_is_a_safe_file_name(jobs: Jobs, job_id: str) -> None:
    with pytest.raises(BadRequest, match="not allowed"):
        await jobs.submit("ingest", {}, job_id)


async def test_an_unknown_job(jobs: Jobs) -> None:
    for call in (jobs.get("nobody"), jobs.claim("nobody", "here")):
        with pytest.raises(NotFound):
            await call


async def test_one_of_many_runners_gets_the_job(jobs: Jobs) -> None:
    job = await jobs.submit("ingest", {})
    claims = [jobs.claim(job.id, f"runner{n}") for n in range(8)]
    results = await asyncio.gather(*claims, return_exceptions=True)
    refused = [result for result in results if isinstance(result, ClaimRefused)]
    assert len(refused) == 7
    assert "is being worked on by runner" in str(refused[0])
    assert (await jobs.get(job.id)).attempt == 1


async def test_a_lease_that_ran_out_is_taken_over_and_the_zombie_refused(
    database: Database, items: JobItems
) -> None:
    jobs = Jobs(database, lease_s=SOON_S)
    zombie = await claimed(jobs)
    await asyncio.sleep(2 * SOON_S)
    assert (await jobs.get(zombie.job_id)).lease_ran_out(datetime.now(UTC))
    assert await jobs.renew(zombie) is False  # late, but nobody else has it
    await asyncio.sleep(2 * SOON_S)
    heir = await Jobs(database).claim(zombie.job_id, "here")
    for write in (
        jobs.renew(zombie, {"done": 9}),
        jobs.finish(zombie, {}),
        jobs.fail(zombie, "x"),
        jobs.cancelled(zombie),
        jobs.release(zombie),
        items.finish(zombie, {1: None}),
        items.fail(zombie, {2: "x"}),
    ):
        with pytest.raises(LeaseLost):
            await write
    assert await items.finished(heir.job_id) == set()
    job = await jobs.get(heir.job_id)
    assert (job.status, job.attempt, job.fruitless, job.progress) == ("in_progress", 2, 2, {})
    await jobs.finish(heir, {})


async def test_a_released_job_is_free_at_once_and_its_attempt_not_held_against_it(jobs: Jobs) -> None:
    lease = await claimed(jobs)
    await jobs.release(lease)
    job = await jobs.get(lease.job_id)
    assert (job.status, job.fruitless) == ("in_progress", 0)
    assert job.lease_ran_out(datetime.now(UTC))
    assert (await jobs.claim(lease.job_id, "there")).job.attempt == 2


async def test_cancel(jobs: Jobs) -> None:
    scheduled = await jobs.submit("ingest", {})
    assert (await jobs.cancel(scheduled.id)).status == "cancelled"
    with pytest.raises(ClaimRefused, match="is cancelled"):
        await jobs.claim(scheduled.id, "here")
    lease = await claimed(jobs)
    asked = await jobs.cancel(lease.job_id)
    assert (asked.status, asked.cancel_requested) == ("in_progress", True)
    assert await jobs.renew(lease) is True
    await jobs.cancel(lease.job_id)  # again is fine until it has ended
    await jobs.cancelled(lease)
    for job_id in (scheduled.id, lease.job_id):
        with pytest.raises(BadRequest, match="is cancelled already"):
            await jobs.cancel(job_id)
    with pytest.raises(NotFound):
        await jobs.cancel("nobody")


async def test_a_job_being_cancelled_is_not_taken_again(jobs: Jobs) -> None:
    lease = await claimed(jobs)
    await jobs.cancel(lease.job_id)
    await jobs.release(lease)
    with pytest.raises(ClaimRefused, match="being cancelled"):
        await jobs.claim(lease.job_id, "there")
    await jobs.end(await jobs.get(lease.job_id), "cancelled")
    assert (await jobs.get(lease.job_id)).status == "cancelled"


async def test_the_reconciler_leaves_a_job_alone_that_changed(jobs: Jobs) -> None:
    lease = await claimed(jobs)
    seen = await jobs.get(lease.job_id)
    await jobs.take_away(seen)
    with pytest.raises(LeaseLost):
        await jobs.renew(lease)
    await jobs.claim(lease.job_id, "there")
    for write in (jobs.end(seen, "failed", "died"), jobs.take_away(seen)):
        with pytest.raises(LeaseLost):
            await write
    assert (await jobs.get(lease.job_id)).status == "in_progress"


async def test_a_reason_is_bounded_and_can_be_stored(jobs: Jobs) -> None:
    lease = await claimed(jobs)
    await jobs.fail(lease, "nul \0 half \ud800 " + "x" * 5000)
    job = await jobs.get(lease.job_id)
    assert job.status == "failed"
    assert job.detail is not None
    assert job.detail.startswith("nul  half ? xx")
    assert len(job.detail) == 2001


async def test_list_pages_from_the_newest(jobs: Jobs) -> None:
    made = [(await jobs.submit(kind, {"n": n})).id for n, kind in enumerate(["a", "b"] * 5)]
    await jobs.cancel(made[0])
    pages: list[Job] = []
    while page := await jobs.list(limit=3, after=pages[-1].id if pages else None):
        pages += page
    assert [job.id for job in pages] == made[::-1]
    assert [job.id for job in await jobs.list(kind="b")] == made[::-1][::2]
    assert [job.id for job in await jobs.list(status="cancelled")] == made[:1]
    assert [job.id for job in await jobs.active()] == made[1:]
    with pytest.raises(NotFound):
        await jobs.list(after="nobody")


async def test_items_are_noted_once(jobs: Jobs, items: JobItems) -> None:
    lease = await claimed(jobs)
    assert (await jobs.get(lease.job_id)).fruitless == 1
    await items.finish(lease, {n: {"chunks": n} for n in range(500)})
    await items.fail(lease, {500: "no \0 such file", 3: "too late"})
    await items.finish(lease, {3: {"chunks": 99}, 501: None})
    await items.finish(lease, {})
    assert (await jobs.get(lease.job_id)).fruitless == 0
    assert await items.finished(lease.job_id) == set(range(502))
    assert await items.counts(lease.job_id) == (502, 1)
    assert await items.page(lease.job_id, after=2, limit=1) == [Item(3, None, {"chunks": 3})]
    assert await items.page(lease.job_id, failed=True) == [Item(500, "no  such file")]
    assert [item.item for item in await items.page(lease.job_id, after=499, failed=False)] == [501]
    assert await items.counts("nobody") == (0, 0)


async def test_items_of_an_ended_job_are_swept(jobs: Jobs, items: JobItems) -> None:
    lease, other = await claimed(jobs), await claimed(jobs)
    for each in (lease, other):
        await items.finish(each, {0: None})
    await jobs.finish(lease)
    later = datetime.now(UTC) + timedelta(seconds=1)
    assert await items.unswept(later - timedelta(hours=1)) == []
    assert await items.unswept(later) == [lease.job_id]
    await items.sweep(lease.job_id)
    assert await items.unswept(later) == []
    assert await items.finished(lease.job_id) == set()
    assert await items.finished(other.job_id) == {0}
    assert (await jobs.get(lease.job_id)).status == "completed"
