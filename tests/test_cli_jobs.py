"""`stack jobs` against a real HTTP server with the real routes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn
from typer.testing import CliRunner

from stack.app import create_app
from stack.cli.app import app
from stack.context import Stack, open_stack
from stack.jobs.logs import log_path
from stack.settings import Settings
from stack.store.database import open_database
from stack.store.job_items import JobItems
from stack.store.jobs import Jobs


def run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["jobs", *args])
    return result.exit_code, result.output


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture(autouse=True)
def server(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:

    @asynccontextmanager
    async def opened() -> AsyncIterator[Stack]:
        async with open_stack(settings) as stack:
            yield stack

    config = uvicorn.Config(create_app(opened), port=0, log_level="warning")
    served = uvicorn.Server(config)
    thread = threading.Thread(target=served.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not served.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    port = served.servers[0].sockets[0].getsockname()[1]
    monkeypatch.setenv("STACK_URL", f"http://127.0.0.1:{port}")
    yield
    served.should_exit = True
    thread.join()


async def make(settings: Settings, end: str = "", delay_s: float = 0.0) -> str:
    """A job that is at work on its fourth of nine items, and ends a little later as asked."""
    async with open_database(settings) as database:
        jobs = Jobs(database)
        job = await jobs.submit("ingest", {})
        lease = await jobs.claim(job.id, "here")
        await JobItems(database).fail(lease, {2: "[no] text in it"})
        await jobs.renew(lease, {"done": 3, "total": 9, "unit": "documents"})
    if end:
        threading.Timer(delay_s, lambda: asyncio.run(finish(settings, job.id, end))).start()
    return job.id


async def finish(settings: Settings, job_id: str, end: str) -> None:
    async with open_database(settings) as database:
        jobs = Jobs(database)
        job = await jobs.get(job_id)
        await jobs.end(
            job, "completed" if end == "completed" else "failed", None if end == "completed" else end
        )


def test_list(settings: Settings) -> None:
    assert run("list") == (0, "no jobs\n")
    job_id = asyncio.run(make(settings))
    code, output = run("list")
    assert code == 0
    assert output.splitlines()[1].split()[:6] == [job_id, "ingest", "in_progress", "3/9", "documents", "1"]
    assert run("list", "--kind", "train") == (0, "no jobs\n")
    code, output = run("list", "--status", "running")
    assert code == 1
    assert "status" in output


def test_show(settings: Settings) -> None:
    job_id = asyncio.run(make(settings))
    code, output = run("show", job_id)
    assert code == 0
    lines = output.splitlines()
    assert lines[0] == f"job:      {job_id}"
    assert "status:   in_progress" in lines
    assert "progress: 3/9 documents" in lines
    assert "item 2 failed: [no] text in it" in lines
    assert run("show", "nobody") == (1, "error: job 'nobody' is not registered\n")


@pytest.mark.parametrize(("end", "code"), [("completed", 0), ("the model is gone", 1)])
def test_follow_stays_until_the_end(settings: Settings, end: str, code: int) -> None:
    job_id = asyncio.run(make(settings, end, delay_s=1.0))
    exit_code, output = run("show", job_id, "--follow")
    assert exit_code == code
    assert ("detail:   the model is gone" in output) == bool(code)
    assert "took:" in output


def test_cancel_and_logs(settings: Settings) -> None:
    job_id = asyncio.run(make(settings))
    assert run("logs", job_id) == (0, "")
    log_path(settings.home, job_id).parent.mkdir()
    log_path(settings.home, job_id).write_text("one\ntwo\n")
    assert run("logs", job_id) == (0, "one\ntwo\n")
    assert run("cancel", job_id) == (0, "cancellation is asked; the job is stopping\n")
    assert "cancellation is asked" in run("show", job_id)[1]
    asyncio.run(finish(settings, job_id, "x"))
    assert run("cancel", job_id)[0] == 1
