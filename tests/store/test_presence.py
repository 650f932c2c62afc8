"""Who is alive: told at once, whatever ended the others."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from stack.settings import Settings
from stack.store import presence
from stack.store.database import Database, open_database
from stack.store.presence import open_presence

PROGRAM = """
import asyncio, sys
from stack.settings import Settings
from stack.store.database import open_database
from stack.store.presence import open_presence

async def main():
    async with open_database(Settings()) as database, open_presence(database) as presence:
        print(presence.owner, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
async def other(settings: Settings, database: Database) -> AsyncIterator[tuple[str, subprocess.Popen[str]]]:
    """Another process of the stack, and its name."""
    environment = os.environ | {"STACK_HOME": str(settings.home), "STACK_DATABASE_URL": settings.database}
    process = subprocess.Popen(  # noqa: ASYNC220  it is read in a thread
        [sys.executable, "-c", PROGRAM],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    yield (await asyncio.to_thread(process.stdout.readline)).strip(), process
    process.kill()
    process.wait()
    process.stdout.close()


async def test_process_is_alive_until_it_is_killed(
    database: Database, other: tuple[str, subprocess.Popen[str]]
) -> None:
    owner, process = other
    async with open_presence(database) as own:
        assert await own.is_alive(own.owner)
        assert await own.is_alive(owner)
        assert await own.is_alive(owner)  # asking changes nothing
        process.send_signal(signal.SIGKILL)
        process.wait()
        for _ in range(20):  # Postgres notices a lost connection a moment later
            if not await own.is_alive(owner):
                break
            await asyncio.sleep(0.05)
        assert not await own.is_alive(owner)
        assert not await own.is_alive("never-there")


async def test_two_in_one_process_are_told_apart(database: Database) -> None:
    async with open_presence(database) as first:
        async with open_presence(database) as second:
            assert await first.is_alive(second.owner)
        assert not await first.is_alive(second.owner)


async def test_nothing_is_left_behind(settings: Settings) -> None:
    async with open_database(settings) as database, open_presence(database) as own:
        owner = own.owner
    assert list(settings.home.glob(f"*{owner}*")) == []


async def test_sweep_removes_what_the_dead_left(
    settings: Settings, database: Database, other: tuple[str, subprocess.Popen[str]]
) -> None:
    owner, process = other
    async with open_presence(database) as own:
        await own.sweep()
        assert await own.is_alive(owner)
        process.kill()
        process.wait()
        await own.sweep()
        assert list(settings.home.glob(f"*{owner}*")) == []
        assert await own.is_alive(own.owner)
        if database.is_sqlite:
            assert len(list(settings.home.glob("*process-*"))) == 1


async def test_lost_lock_is_taken_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    if database.is_sqlite:
        pytest.skip("a file's lock cannot be lost")
    monkeypatch.setattr(presence, "CHECK_S", 0.05)
    async with open_presence(database) as own, open_presence(database) as observer:
        async with database.write() as connection:
            holders = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
            await connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM ({holders}) AS found"))
        for _ in range(100):
            if await observer.is_alive(own.owner) and await own.is_alive(observer.owner):
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.3)
        assert await observer.is_alive(own.owner)
        assert await own.is_alive(observer.owner)


async def test_lock_that_cannot_be_had_is_told(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(database, "lock", refuse)
    with pytest.raises(OSError, match="no locks"):
        async with open_presence(database):
            pass
