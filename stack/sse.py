"""Server-sent events: the only module that frames them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from pydantic import BaseModel
from starlette.responses import Response

from stack.api.errors import detail_of
from stack.errors import StackError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 15.0
MAX_WAITING = 256  # events that a slow client may be behind before the source is held up


async def event_stream(events: AsyncIterator[BaseModel]) -> Response:
    """Answer with the events. An error before the first one is raised here, so it keeps its own status."""
    source = _Source(events)
    try:
        await source.wait()
        if source.error is not None and not source.frames:
            raise source.error
    except BaseException:
        await source.close()
        raise
    return _EventStream(source)


class _EventStream(Response):
    media_type = "text/event-stream"

    def __init__(self, source: _Source) -> None:
        self._source = source
        self.status_code, self.background = 200, None
        # x-accel-buffering: proxies of the nginx kind pass events on at once.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    def init_headers(self, headers: dict[str, str] | None = None) -> None:  # type: ignore[override]
        self.raw_headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        self.raw_headers += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for body in self._source:
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:
            log.info("the client went away during a stream")
        finally:
            await self._source.close()


class _Source:
    """Drives the iterator in one task from its first item to its close, since a generator may hold what
    must be released by the task that took it. Iterating gives bodies: all that is ready, joined."""

    def __init__(self, events: AsyncIterator[BaseModel]) -> None:
        self.frames: deque[bytes] = deque()
        self.error: BaseException | None = None
        self._ready, self._room = asyncio.Event(), asyncio.Event()
        self._done = False
        self._task = asyncio.create_task(self._run(events))

    async def _run(self, events: AsyncIterator[BaseModel]) -> None:
        try:
            async for event in events:
                self.frames.append(b"data: %b\n\n" % event.model_dump_json().encode())
                self._ready.set()
                while len(self.frames) >= MAX_WAITING:
                    self._room.clear()
                    await self._room.wait()
        except asyncio.CancelledError:
            self.error = StackError("the answer was cut off: the work was cancelled")
            raise
        except Exception as error:  # an edge: told to the client by whoever reads the frames
            self.error = error
        finally:
            self._done = True
            self._ready.set()
            if hasattr(events, "aclose"):
                await events.aclose()

    async def wait(self) -> None:
        """Until there are frames, or nothing more will come."""
        await self._ready.wait()

    def __aiter__(self) -> _Source:
        return self

    async def __anext__(self) -> bytes:
        try:
            async with asyncio.timeout(KEEP_ALIVE_S):
                await self._ready.wait()
        except TimeoutError:
            return b": keep-alive\n\n"
        if self.frames:
            body = b"".join(self.frames)
            self.frames.clear()
            self._room.set()
            if not self._done:
                self._ready.clear()
            return body
        if self.error is not None:
            error, self.error = self.error, None
            return self._error_frame(error)
        raise StopAsyncIteration

    def _error_frame(self, error: BaseException) -> bytes:
        if not isinstance(error, StackError):
            log.error("failed during a stream", exc_info=error)
        return b"data: %b\n\n" % json.dumps({"error": {"message": detail_of(error)}}).encode()

    async def close(self) -> None:
        """Stop the source now and wait until it has cleaned up."""
        self._task.cancel()
        await asyncio.wait([self._task])
