"""SQLite as this server uses it, and its transactions as a whole in threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL

T = TypeVar("T")

BUSY_TIMEOUT_S = 30.0
READERS = 4

# isolation_level None: the driver starts no transactions of its own.
SQLITE_ARGUMENTS: dict[str, Any] = {"isolation_level": None, "timeout": BUSY_TIMEOUT_S}


def prepare_sqlite(writer: Engine, reader: Engine) -> None:
    """Say what every connection does first, and how the writer's transactions begin."""

    def set_pragmas(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    def begin(connection: Connection) -> None:
        # A transaction that reads first and writes later would fail at once when another wrote meanwhile.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    for engine in (writer, reader):
        event.listen(engine, "connect", set_pragmas)
    event.listen(writer, "begin", begin)


class Cancelled(Exception):
    """Rolls back a transaction whose caller went away."""


class SqliteThreads:
    """A thread that writes and some that read, each with connections of its own."""

    def __init__(self, url: URL) -> None:
        self._writer, self._reader = (
            create_engine(
                url.set(drivername="sqlite+pysqlite"),
                connect_args=SQLITE_ARGUMENTS | {"check_same_thread": False},
                hide_parameters=True,
                pool_size=size,
                max_overflow=0,
                pool_reset_on_return=None if size > 1 else "rollback",
                skip_autocommit_rollback=size > 1,
            )
            for size in (1, READERS)
        )
        prepare_sqlite(self._writer, self._reader)
        self._write = ThreadPoolExecutor(1, thread_name_prefix="sqlite-write")
        self._read = ThreadPoolExecutor(READERS, thread_name_prefix="sqlite-read")

    async def query(self, work: Callable[[Connection], T]) -> T:
        def run() -> T:
            with self._reader.connect() as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._read, run)

    async def transact(self, work: Callable[[Connection], T]) -> T:
        left = threading.Event()

        def run() -> T:
            with self._writer.begin() as connection:
                result = work(connection)
                if left.is_set():
                    raise Cancelled
            return result

        future = asyncio.get_running_loop().run_in_executor(self._write, run)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            left.set()
            await asyncio.wait([future])  # what is read afterwards is settled
            if not future.cancelled():
                future.exception()
            raise

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        for threads, engine in ((self._write, self._writer), (self._read, self._reader)):
            threads.shutdown(wait=True)
            engine.dispose()
