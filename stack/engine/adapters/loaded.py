"""Which adapters a replica holds: loaded when first asked for; of too many the least recently used goes."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from stack.engine.base import Adapter
from stack.errors import StackError

log = logging.getLogger(__name__)


class Places(Protocol):
    """Where adapters are put."""

    async def load(self, adapter: Adapter) -> None:
        """Raises StackError for one that cannot be had, and leaves nothing behind."""

    async def unload(self, key: str) -> None: ...


@dataclass(eq=False, slots=True)
class _Entry:
    adapter: Adapter
    loading: asyncio.Task[None]
    users: int = 0
    deleted: bool = False


class Adapters:
    """Belongs to one event loop."""

    def __init__(self, places: Places, limit: int) -> None:
        self._places, self._limit = places, limit
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # the least recently used one first
        self._unloading: dict[str, asyncio.Task[None]] = {}
        self._idle = asyncio.Condition()

    @property
    def held(self) -> list[Adapter]:
        return [entry.adapter for entry in self._entries.values()]

    @asynccontextmanager
    async def use(self, adapter: Adapter) -> AsyncGenerator[str]:
        """The adapter's key, loaded for as long as it is used. Waits while all places are in use.

        Raises StackError for an adapter that cannot be had.
        """
        entry = await self._entry(adapter)
        entry.users += 1
        try:
            await asyncio.shield(entry.loading)
            yield adapter.key
        finally:
            entry.users -= 1
            await self._left(entry)

    async def keep(self, keys: Collection[str]) -> None:
        """Unload all other adapters, those in use once they are not."""
        for key, entry in list(self._entries.items()):
            if key not in keys:
                entry.deleted = True
                if not entry.users:
                    self._unload(entry)
        async with self._idle:
            self._idle.notify_all()

    async def _entry(self, adapter: Adapter) -> _Entry:
        async with self._idle:
            while (entry := self._entries.get(adapter.key)) is None and not self._make_room():
                await self._idle.wait()
            if entry is None:
                loading = asyncio.create_task(self._load(adapter))
                entry = self._entries[adapter.key] = _Entry(adapter, loading)
            self._entries.move_to_end(adapter.key)
            return entry

    def _make_room(self) -> bool:
        if len(self._entries) < self._limit:
            return True
        idle = next((entry for entry in self._entries.values() if not entry.users), None)
        if idle is not None:
            self._unload(idle)
        return idle is not None

    async def _load(self, adapter: Adapter) -> None:
        if self._unloading:  # first, so that no more than the limit are there at any time
            await asyncio.wait(set(self._unloading.values()))
        try:
            await self._places.load(adapter)
        except BaseException:
            entry = self._entries.get(adapter.key)
            if entry is not None and entry.loading is asyncio.current_task():
                del self._entries[adapter.key]
            raise
        log.info("adapter %s is loaded", adapter.key)

    async def _left(self, entry: _Entry) -> None:
        if entry.users:
            return
        if entry.deleted and self._entries.get(entry.adapter.key) is entry:
            self._unload(entry)
        async with self._idle:
            self._idle.notify_all()

    def _unload(self, entry: _Entry) -> None:
        key = entry.adapter.key
        del self._entries[key]
        task = self._unloading[key] = asyncio.create_task(self._end(entry))
        task.add_done_callback(lambda _: self._unloading.pop(key, None))

    async def _end(self, entry: _Entry) -> None:
        with suppress(StackError):
            await entry.loading
        await self._places.unload(entry.adapter.key)
        log.info("adapter %s is unloaded", entry.adapter.key)
