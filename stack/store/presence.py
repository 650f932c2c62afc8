"""Which processes of a stack are alive: each holds a lock that ends with it, whatever ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from uuid import uuid4

from stack.errors import StackError
from stack.store.database import Database

log = logging.getLogger(__name__)

CHECK_S = 5.0


class Presence:
    """This process among the others. `owner` is its name in rows that it works on."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.owner = uuid4().hex

    async def is_alive(self, owner: str) -> bool:
        return owner == self.owner or await self._database.is_locked(_lock(owner))

    async def sweep(self) -> None:
        """Remove what dead processes left, with SQLite a file each."""
        file = Path(str(self._database.url.database))
        if self._database.is_sqlite:
            for lock in file.parent.glob(f"{file.name}.{_lock('*')}.lock"):
                await self._database.is_locked(lock.name.removeprefix(f"{file.name}.").removesuffix(".lock"))

    async def hold(self, held: asyncio.Event) -> None:
        """Keep the lock. Postgres lets go of it when it loses the connection: then it is taken again."""
        name = _lock(self.owner)
        while True:
            try:
                async with self._database.lock(name):
                    held.set()
                    while True:
                        await asyncio.sleep(CHECK_S)
                        if not await self._database.is_locked(name):
                            break
            except (StackError, OSError) as error:
                if not held.is_set():
                    raise
                log.warning("the lock that shows this process alive is lost, taking it again: %s", error)
                await asyncio.sleep(1)


@contextlib.asynccontextmanager
async def open_presence(database: Database) -> AsyncGenerator[Presence]:
    """Raises what keeps the lock from being taken at first."""
    presence, held = Presence(database), asyncio.Event()
    task = asyncio.create_task(presence.hold(held))
    first = asyncio.create_task(held.wait())
    try:
        await asyncio.wait([first, task], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield presence
    finally:
        first.cancel()
        task.cancel()
        await asyncio.wait([task])
        await database.is_locked(_lock(presence.owner))  # removes the lock's file


def _lock(owner: str) -> str:
    return f"process-{owner}"
