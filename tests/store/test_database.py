from __future__ import annotations

import asyncio
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, insert, select, text, update

from stack.errors import NotReady, Overloaded
from stack.schemas.models import Model
from stack.settings import Settings
from stack.store import migrations
from stack.store.database import Database, open_database
from stack.store.model_status import ModelStatuses
from stack.store.registry import Registry
from stack.store.tables import metadata, model_status, resources
from tests.store.examples import model


async def test_migrations_make_the_tables(new_settings: Settings) -> None:
    def differences(connection: Connection) -> Any:
        return compare_metadata(MigrationContext.configure(connection), metadata)

    async with open_database(new_settings) as database, database.read() as connection:
        assert await connection.run_sync(differences) == []


def test_head_is_the_newest_migration() -> None:
    folder = Path(migrations.__file__).parent
    assert ScriptDirectory(str(folder)).get_current_head() == migrations.HEAD


async def test_sqlite_is_in_wal_mode_and_checks_foreign_keys(tmp_path: Path) -> None:
    sqlite = Settings(home=tmp_path / "new", database_url=None)
    async with open_database(sqlite) as database, database.write() as connection:
        assert await connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert await connection.scalar(text("PRAGMA foreign_keys")) == 1
        assert await connection.scalar(text("PRAGMA busy_timeout")) == 30_000


async def test_an_error_or_a_cancellation_rolls_back(database: Database) -> None:
    row = {"identifier": "a", "state": "ready", "description": "{}", "updated_at": func.now()}

    async def fail(how: BaseException) -> None:
        async with database.write() as connection:
            await connection.execute(insert(model_status).values(row))
            raise how

    async def hang() -> None:
        async with database.write() as connection:
            await connection.execute(insert(model_status).values(row))
            await asyncio.sleep(60)

    with pytest.raises(KeyError):
        await fail(KeyError("x"))
    task = asyncio.create_task(hang())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        assert await ModelStatuses(database).list() == []
        await ModelStatuses(database).set("a", "ready")


async def test_a_newer_database_is_refused_by_name(new_settings: Settings) -> None:
    async with open_database(new_settings) as database, database.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ValueError, match=r"version '9999'.*STACK_DATABASE_URL"):
        async with open_database(new_settings):
            pass


@pytest.mark.parametrize("url", ["mysql://me:hunter2@host/db", "nonsense hunter2", "sqlite://"])
async def test_a_wrong_url_says_what_to_write(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match=r"STACK_DATABASE_URL.*postgresql\+asyncpg://") as error:
        async with open_database(Settings(home=tmp_path, database_url=url)):
            pass
    assert "hunter2" not in str(error.value)


async def test_an_unreachable_server_is_not_ready(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="cannot be reached"):
        async with open_database(Settings(home=tmp_path, database_url="postgresql://me@127.0.0.1:1/none")):
            pass


PROCESSES, STEPS = 4, 25


def _work(home: str, url: str | None, start: Any, number: int) -> None:
    """One process among several: opens the new database at the same moment, then writes a lot."""

    async def work() -> None:
        async with open_database(Settings(home=Path(home), database_url=url)) as database:
            registry, statuses = Registry(database, Model), ModelStatuses(database)
            await registry.register(model("counter", metadata={"n": 0}))
            start.wait()  # nobody counts before everybody has registered
            for step in range(STEPS):
                await registry.register(model(f"own-{number}-{step}"))
                await registry.register(model(f"shared-{step}"))
                await statuses.set("counted", "loading", f"{number}-{step}")
                await _count(database)

    start.wait()
    asyncio.run(work())


async def _count(database: Database) -> None:
    """Read, then write: loses updates unless the database serialises the two."""
    row = resources.c.identifier == "counter"
    async with database.write() as connection:
        body = await connection.scalar(select(resources.c.body).where(row).with_for_update())
        count = int(str(Model.model_validate_json(str(body)).metadata["n"]))
        new = model("counter", metadata={"n": count + 1})
        await connection.execute(update(resources).where(row).values(body=new.model_dump_json()))


def test_processes_may_start_and_write_at_once(new_settings: Settings) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(PROCESSES)
    processes = [
        context.Process(target=_work, args=(str(new_settings.home), new_settings.database_url, start, number))
        for number in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * PROCESSES

    async def models() -> list[Model]:
        async with open_database(new_settings) as database:
            return await Registry(database, Model).list()

    found = {each.identifier: each for each in asyncio.run(models())}
    assert len(found) == 1 + PROCESSES * STEPS + STEPS
    assert found["counter"].metadata == {"n": PROCESSES * STEPS}


async def test_a_lock_is_held_by_one_at_a_time(settings: Settings, database: Database) -> None:
    """Also between connections, as two processes have them."""
    inside, most = 0, 0

    async def enter(opened: Database) -> None:
        nonlocal inside, most
        async with opened.lock("one"):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.02)
            inside -= 1

    async with open_database(settings) as other:
        await asyncio.gather(*(enter(opened) for opened in (database, other) * 4))
        assert most == 1
        async with database.lock("one"), other.lock("two"):
            with pytest.raises(Overloaded, match="waited"):
                async with other.lock("one", timeout_s=0.1):
                    pass
    async with database.lock("one"):
        pass


async def test_a_lock_is_free_after_an_error_and_after_a_cancellation(database: Database) -> None:
    async def hold(entered: asyncio.Event) -> None:
        async with database.lock("one"):
            entered.set()
            await asyncio.sleep(60)

    with pytest.raises(ZeroDivisionError):
        async with database.lock("one"):
            raise ZeroDivisionError
    entered = asyncio.Event()
    task = asyncio.create_task(hold(entered))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with database.lock("one", timeout_s=5):
        pass


async def test_a_lock_leaves_no_transaction_open(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("a lock on a file")
    async with database.lock("one"), database.read() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
        assert await connection.scalar(text(f"{query} AND datname = current_database()")) == 0
