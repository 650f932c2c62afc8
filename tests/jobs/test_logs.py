"""What jobs leave on the storage."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from stack.jobs.logs import files_of, sweep_orphans
from stack.settings import Settings
from stack.store.database import open_database
from stack.store.jobs import Jobs
from stack.store.storage import open_storage


async def test_what_was_stored_for_no_job_is_freed(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    async with open_database(settings) as database, open_storage(settings) as storage:
        jobs = Jobs(database)
        job = await jobs.submit("ingest", {})
        for job_id in (job.id, "killed-while-it-was-submitted"):
            await storage.write(f"{files_of(job_id)}/documents.jsonl", b"{}")
        assert await sweep_orphans(jobs, storage) == 0  # young: perhaps being submitted
        assert await sweep_orphans(jobs, storage, timedelta(0)) == 1
        assert await storage.find("jobs") == [f"{files_of(job.id)}/documents.jsonl"]
