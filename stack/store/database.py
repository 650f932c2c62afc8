"""One SQL database, SQLite in WAL mode or Postgres, with the same tables; many processes share it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from filelock import AsyncFileLock, FileLock
from filelock import Timeout as LockTimeout
from sqlalchemy import Connection, Table, inspect, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from stack.errors import NotReady, Overloaded
from stack.settings import Settings
from stack.store.migrations import HEAD
from stack.store.sqlite import BUSY_TIMEOUT_S, SQLITE_ARGUMENTS, SqliteThreads, prepare_sqlite

T = TypeVar("T")


class Database:
    """Reads autocommit, one statement each; writes are serialised by the database, not by this process."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self._writer, self._reader = _sqlite_engines(url) if self.is_sqlite else _postgres_engines(url)
        self._threads = SqliteThreads(url) if self.is_sqlite else None

    def read(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection for SELECTs."""
        return _kindly(self._reader.connect)

    def write(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A transaction: committed at the end of the block, rolled back on an error or a cancellation."""
        return _kindly(self._writer.begin)

    async def query(self, work: Callable[[Connection], T]) -> T:
        """What `work` reads, each statement by itself. See `transact`."""
        if self._threads is None:
            async with self.read() as connection:
                return await connection.run_sync(work)
        with _kind_errors():
            return await self._threads.query(work)

    async def transact(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction: committed when it returns, rolled back when it raises.

        With SQLite it runs in a thread as a whole, which takes a seventh of the time of `write`, where each
        statement costs several switches of threads: for what every turn or request does. A caller that is
        cancelled while the transaction ends cannot know whether it was committed.
        """
        if self._threads is None:
            async with self.write() as connection:
                return await connection.run_sync(work)
        with _kind_errors():
            return await self._threads.transact(work)

    def insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """INSERT with ON CONFLICT, which both databases have and standard SQL lacks."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    async def migrate(self) -> None:
        """Bring the tables up to date. Any number of processes may do so at once."""
        if await self._version() == HEAD:
            return
        async with self.lock("migrations"):
            if self.is_sqlite:
                async with self.read() as connection:
                    await connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # lasts in the file
            async with self.write() as connection:
                await connection.run_sync(_upgrade)

    @asynccontextmanager
    async def lock(self, name: str, timeout_s: float = 120.0) -> AsyncGenerator[None]:
        """Hold the lock of that name, which one process of the stack has at a time; a dead one loses it.

        SQLite: a lock on a file beside the database's. Postgres: an advisory lock. Raises Overloaded.
        """
        started = time.monotonic()
        own = self._locks.setdefault(name, asyncio.Lock())
        try:
            # Those of this process take turns first: each waiter for Postgres holds a connection.
            async with asyncio.timeout(timeout_s):
                await own.acquire()
        except TimeoutError as error:
            raise _held_too_long(timeout_s) from error
        try:
            async with self._shared_lock(name, max(0.1, timeout_s - (time.monotonic() - started))):
                yield
        finally:
            own.release()

    @asynccontextmanager
    async def _shared_lock(self, name: str, timeout_s: float) -> AsyncGenerator[None]:
        if self.is_sqlite:
            file = AsyncFileLock(self._lock_file(name), timeout=timeout_s, is_singleton=False)
            try:
                await file.acquire(poll_interval=0.01)
            except LockTimeout as error:
                raise _held_too_long(timeout_s) from error
            try:
                yield
            finally:
                await file.release()
            return
        key = _lock_key(name)
        # The session has the lock, not a transaction: an open one keeps dead rows from being vacuumed.
        async with _kindly(self._writer.connect) as connection:
            try:
                async with connection.begin():
                    await connection.execute(text(f"SET LOCAL lock_timeout = '{int(timeout_s * 1000)}ms'"))
                    await connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
            except DBAPIError as error:
                if "lock timeout" not in str(error.orig):
                    raise
                raise _held_too_long(timeout_s) from error
            try:
                yield
            finally:
                async with connection.begin():
                    await connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": key})

    async def is_locked(self, name: str) -> bool:
        """Whether any process holds the lock of that name now. Waits for nobody."""
        if self.is_sqlite:
            return await asyncio.to_thread(_is_locked, Path(self._lock_file(name)))
        high, low = divmod(_lock_key(name) % 2**64, 2**32)
        async with self.read() as connection:
            return await connection.scalar(_HELD, {"high": high, "low": low}) is not None

    def _lock_file(self, name: str) -> str:
        return f"{self.url.database}.{name}.lock"

    async def _version(self) -> str | None:
        async with self.read() as connection:
            if not await connection.run_sync(lambda sync: inspect(sync).has_table("alembic_version")):
                return None
            version: str | None = await connection.scalar(text("SELECT version_num FROM alembic_version"))
            return version

    async def close(self) -> None:
        await self._reader.dispose()
        await self._writer.dispose()
        if self._threads is not None:
            await self._threads.close()


_HELD = text(
    "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
    " AND classid::bigint = :high AND objid::bigint = :low"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def _lock_key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def _is_locked(file: Path) -> bool:
    """A file whose lock nobody holds is removed: its holder is dead."""
    if not file.exists():
        return False
    try:
        with FileLock(file, timeout=0, is_singleton=False):
            file.unlink(missing_ok=True)
    except LockTimeout:
        return True
    return False


def _held_too_long(timeout_s: float) -> Overloaded:
    return Overloaded(f"waited {timeout_s:g} s for another request that changes the same; try again")


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncGenerator[Database]:
    """The settings' database, migrated."""
    database = connect(settings, settings.database)
    try:
        await database.migrate()
        yield database
    finally:
        await database.close()


def connect(settings: Settings, url: str) -> Database:
    """A database, as it is. Creates STACK_HOME and, for SQLite, the file's folder."""
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = Database(_checked_url(url))
    if database.is_sqlite:
        Path(str(database.url.database)).parent.mkdir(parents=True, exist_ok=True)
    return database


def _checked_url(value: str) -> URL:
    try:
        url = make_url(value)
    except ArgumentError:
        raise ValueError(
            "STACK_DATABASE_URL is not a URL: write e.g. postgresql+asyncpg://user@host/stack"
        ) from None
    backend, shown = url.get_backend_name(), url.render_as_string(hide_password=True)
    if backend == "sqlite" and url.database and url.database != ":memory:":
        return url.set(drivername="sqlite+aiosqlite")
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+asyncpg")
    raise ValueError(
        f"STACK_DATABASE_URL={shown}: write sqlite:///FILE or postgresql+asyncpg://USER@HOST/DATABASE"
    )


def _sqlite_engines(url: URL) -> tuple[AsyncEngine, AsyncEngine]:
    # hide_parameters: errors are logged, and what callers wrote must not be.
    arguments = SQLITE_ARGUMENTS
    # One writing connection a process: SQLite lets only one write, and waiting here costs no polling.
    writer = create_async_engine(
        url,
        connect_args=arguments,
        hide_parameters=True,
        pool_size=1,
        max_overflow=0,
        pool_timeout=BUSY_TIMEOUT_S,
    )
    # Readers hold no transactions, so returning one to the pool needs no rollback (a thread switch each).
    reader = create_async_engine(
        url,
        connect_args=arguments,
        hide_parameters=True,
        pool_size=4,
        max_overflow=4,
        pool_timeout=BUSY_TIMEOUT_S,
        pool_reset_on_return=None,
        skip_autocommit_rollback=True,
    )

    prepare_sqlite(writer.sync_engine, reader.sync_engine)
    return writer, reader


def _postgres_engines(url: URL) -> tuple[AsyncEngine, AsyncEngine]:
    engine = create_async_engine(url, hide_parameters=True, pool_size=5, max_overflow=10, pool_pre_ping=True)
    return engine, engine.execution_options(isolation_level="AUTOCOMMIT")


def _upgrade(connection: Connection) -> None:
    # Imported here: a process that finds the tables up to date does not need Alembic.
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in known:
        raise ValueError(
            f"the database is at version {current!r}, which this release (at {HEAD!r}) does not know: "
            "install the newer release, or name another database in STACK_DATABASE_URL"
        )
    command.upgrade(config, "head")


@asynccontextmanager
async def _kindly(
    connect: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
) -> AsyncGenerator[AsyncConnection]:
    """The connection, with a database that is away or overrun told as such."""
    connected = False
    try:
        with _kind_errors():
            async with connect() as connection:
                connected = True
                yield connection
    except OSError as error:
        if connected:  # the block's own
            raise
        raise NotReady("the database cannot be reached; try again") from error


@contextmanager
def _kind_errors() -> Generator[None]:
    try:
        yield
    except PoolTimeout as error:
        raise Overloaded("the database has too many requests waiting") from error
    except DBAPIError as error:
        if isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated:
            raise NotReady("the database cannot be reached or is busy; try again") from error
        raise
