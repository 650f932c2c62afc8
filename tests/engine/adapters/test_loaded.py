"""Which adapters are held: who stays, who goes, who waits."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from stack.engine.adapters.loaded import Adapters
from stack.engine.base import Adapter
from stack.errors import BadRequest


class Shelf:
    """`Places` that note what is there; `broken` cannot be loaded."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.most = 0
        self.loads: list[str] = []
        self.broken: set[str] = set()

    async def load(self, adapter: Adapter) -> None:
        await asyncio.sleep(0)
        if adapter.key in self.broken:
            raise BadRequest("broken")
        assert adapter.key not in self.there
        self.loads.append(adapter.key)
        self.there.add(adapter.key)
        self.most = max(self.most, len(self.there))

    async def unload(self, key: str) -> None:
        await asyncio.sleep(0)
        self.there.remove(key)


def adapter(name: str, version: str = "1") -> Adapter:
    return Adapter(name, f"/{name}", version)


async def touch(adapters: Adapters, name: str) -> None:
    async with adapters.use(adapter(name)) as key:
        assert key == f"{name}@1"


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_least_recently_used_one_goes() -> None:
    shelf = Shelf()
    adapters = Adapters(shelf, 2)
    for name in ("a", "b", "a", "c"):
        await touch(adapters, name)
    assert shelf.there == {"a@1", "c@1"}
    assert shelf.loads == ["a@1", "b@1", "c@1"]
    await touch(adapters, "a")
    assert len(shelf.loads) == 3
    assert shelf.most == 2


async def test_one_that_generates_never_goes() -> None:
    shelf = Shelf()
    adapters = Adapters(shelf, 2)
    async with AsyncExitStack() as used:
        await used.enter_async_context(adapters.use(adapter("a")))
        await touch(adapters, "b")
        await touch(adapters, "c")
        assert shelf.there == {"a@1", "c@1"}
        async with adapters.use(adapter("b")):
            waiting = asyncio.create_task(touch(adapters, "d"))
            await settle()
            assert not waiting.done(), "all places are in use"
        await waiting
        assert shelf.there == {"a@1", "d@1"}
    assert shelf.most == 2


async def test_many_at_once_load_once() -> None:
    shelf = Shelf()
    adapters = Adapters(shelf, 3)
    await asyncio.gather(*(touch(adapters, name) for name in "abcdabcd" * 5))
    assert shelf.most == 3
    assert len(shelf.there) == 3


async def test_what_cannot_be_loaded_leaves_nothing() -> None:
    shelf = Shelf()
    adapters = Adapters(shelf, 1)
    shelf.broken.add("a@1")
    with pytest.raises(BadRequest):
        await touch(adapters, "a")
    assert adapters.held == []
    await touch(adapters, "b")
    shelf.broken.clear()
    await touch(adapters, "a")  # it is tried again
    assert shelf.there == {"a@1"}


async def test_a_caller_that_leaves_does_not_stop_the_loading() -> None:
    shelf = Shelf()
    adapters = Adapters(shelf, 1)
    first, second = (asyncio.create_task(touch(adapters, "a")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert shelf.loads == ["a@1"]


async def test_deleted_ones_go_once_they_are_not_used() -> None:
    shelf = Shelf()
    adapters = Adapters(shelf, 3)
    await touch(adapters, "idle")
    await touch(adapters, "kept")
    async with adapters.use(adapter("busy")):
        await adapters.keep({"kept@1"})
        await settle()
        assert shelf.there == {"kept@1", "busy@1"}
    await settle()
    assert shelf.there == {"kept@1"}
    async with adapters.use(adapter("kept", version="2")):  # registered anew
        assert shelf.there == {"kept@1", "kept@2"}
