"""Sessions with MCP servers: one for each endpoint and headers, opened when it is first needed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mcp_types import CallToolResult

from stack.errors import StackError, Timeout
from stack.schemas.tools import ToolDef
from stack.tools.mcp.session import Session, Undelivered
from stack.tools.mcp.transport import CONNECT_S

log = logging.getLogger(__name__)

MAX_SESSIONS = 64
IDLE_S = 300.0
SWEEP_S = 30.0
MAX_REMEMBERED = 256
SILENT_FOR_S = 10.0  # a server that did not answer in time is not asked again for so long
FAILED_FOR_S = 1.0  # one that refused at once

NOT_HERE = (400, 404, 405, 406)
"""What one transport's server answers to the other's first request (see "backwards compatibility" in the
transports of MCP's specification)."""

Key = tuple[str, tuple[tuple[str, str], ...]]
T = TypeVar("T")


class Pool:
    """A session serves any number of calls at the same time; one that broke is opened again."""

    def __init__(self, allowed: Collection[str]) -> None:
        self._allowed = allowed
        self._sessions: OrderedDict[Key, Session] = OrderedDict()  # the one that was used last is last
        self._opening: dict[Key, asyncio.Task[Session]] = {}
        self._sse: OrderedDict[str, bool] = OrderedDict()  # which transport an endpoint speaks
        self._dead: OrderedDict[Key, tuple[float, StackError]] = OrderedDict()  # until when, and why
        self._leaving: list[Session] = []  # retired, with calls under way
        self._sweeper = asyncio.create_task(self._sweep())

    async def connect(self, endpoint: str, headers: Mapping[str, str]) -> None:
        """Whether there is a server now. Raises the StackError that says what is wrong."""
        self._dead.pop(_key(endpoint, headers), None)
        await self._session(endpoint, headers)

    async def tools(self, endpoint: str, headers: Mapping[str, str]) -> list[ToolDef]:
        return await self._send(endpoint, headers, lambda session: session.tools())

    async def call(
        self,
        endpoint: str,
        headers: Mapping[str, str],
        tool: str,
        arguments: dict[str, Any],
        timeout_s: float,
    ) -> CallToolResult:
        """Raises StackErrors, and MCPError with what the server says."""
        return await self._send(endpoint, headers, lambda session: session.call(tool, arguments, timeout_s))

    async def _send(
        self, endpoint: str, headers: Mapping[str, str], send: Callable[[Session], Awaitable[T]]
    ) -> T:
        """Over another session once more, if it is certain that the server did not get it."""
        try:
            return await send(await self._session(endpoint, headers))
        except Undelivered:
            pass
        try:
            return await send(await self._session(endpoint, headers))
        except Undelivered as lost:
            raise lost.error from lost

    async def _session(self, endpoint: str, headers: Mapping[str, str]) -> Session:
        key = _key(endpoint, headers)
        session = self._sessions.get(key)
        if session is not None and session.usable:
            self._sessions.move_to_end(key)
            return session
        if session is not None:
            self._drop(key)
        if key not in self._opening:
            self._check_alive(key)
            task = asyncio.create_task(self._open(key))
            self._opening[key] = task
            task.add_done_callback(lambda done: self._opened(key, done))
        return await asyncio.shield(self._opening[key])

    def _check_alive(self, key: Key) -> None:
        until, error = self._dead.get(key, (0.0, None))
        if error is not None and time.monotonic() < until:
            raise type(error)(*error.args)

    async def _open(self, key: Key) -> Session:
        """With the transport that the endpoint spoke last, else the newer one first."""
        endpoint, headers = key
        deadline = time.monotonic() + CONNECT_S
        first = self._sse.get(endpoint, urlsplit(endpoint).path.rstrip("/").endswith("/sse"))
        session = Session(endpoint, dict(headers), self._allowed, first)
        try:
            await session.open(CONNECT_S)
        except StackError:
            if session.status not in NOT_HERE:
                raise
            session = Session(endpoint, dict(headers), self._allowed, not first)
            if not await _opens(session, max(1.0, deadline - time.monotonic())):
                self._sse.pop(endpoint, None)
                raise
        _remember(self._sse, endpoint, session.sse)
        return session

    def _opened(self, key: Key, task: asyncio.Task[Session]) -> None:
        del self._opening[key]
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._dead.pop(key, None)
            self._sessions[key] = task.result()
            self._make_room()
        elif isinstance(error, StackError):
            seconds = SILENT_FOR_S if isinstance(error, Timeout) else FAILED_FOR_S
            _remember(self._dead, key, (time.monotonic() + seconds, error))

    def _make_room(self) -> None:
        """Sessions without calls go first, those that were used longest ago before others."""
        while len(self._sessions) > MAX_SESSIONS:
            oldest = next(iter(self._sessions))
            self._drop(next((key for key, session in self._sessions.items() if not session.calls), oldest))

    def _drop(self, key: Key) -> None:
        """Its calls end as they would; new ones get another session."""
        session = self._sessions.pop(key)
        session.retire()
        self._leaving = [*(other for other in self._leaving if not other.ended), session]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            before = time.monotonic() - IDLE_S
            for key, session in list(self._sessions.items()):
                if not session.usable or (session.calls == 0 and session.used_at < before):
                    self._drop(key)

    async def close(self) -> None:
        tasks = [self._sweeper, *self._opening.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(session.close() for session in [*self._sessions.values(), *self._leaving]))
        self._sessions.clear()


async def _opens(session: Session, timeout_s: float) -> bool:
    try:
        await session.open(timeout_s)
    except StackError:
        return False
    return True


def _key(endpoint: str, headers: Mapping[str, str]) -> Key:
    return endpoint, tuple(headers.items())


def _remember(memory: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > MAX_REMEMBERED:
        memory.popitem(last=False)
