"""One open session with an MCP server, in a task of its own, for any number of calls at the same time."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import httpx2
import mcp_types as types
from mcp.client import Client
from mcp.client._transport import TransportStreams
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import SubscriptionLost
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import TypeAdapter, ValidationError

from stack.errors import StackError, Timeout, UpstreamError
from stack.schemas.tools import ToolDef
from stack.tools.mcp.attempt import Attempt, current, named
from stack.tools.mcp.listing import MAX_PAGES, MAX_TOOLS, definitions
from stack.tools.mcp.transport import CONNECT_S, MAX_ANSWER_BYTES, READ_S, open_client

log = logging.getLogger(__name__)

LIST_S = 10.0
LISTED_FOR_S = 60.0

T = TypeVar("T")
_CALL_RESULT: TypeAdapter[types.CallToolResult | types.InputRequiredResult] = TypeAdapter(
    types.CallToolResult | types.InputRequiredResult
)
_GARBAGE = (ValidationError, RuntimeError, ValueError, TypeError)


class Undelivered(Exception):
    """A request did not reach the server: it may be sent again over another session."""

    def __init__(self, error: StackError) -> None:
        super().__init__(error)
        self.error = error


class Session:
    """`open` first. It ends when it is retired and its last call is over, or when its connection breaks."""

    def __init__(
        self, endpoint: str, headers: Mapping[str, str], allowed: Collection[str], sse: bool
    ) -> None:
        self.endpoint, self.name, self.sse = endpoint, named(endpoint), sse
        self._headers, self._allowed = headers, allowed
        self._opening = Attempt()
        self._ready, self._end = asyncio.Event(), asyncio.Event()
        self._retired = False
        self._task: asyncio.Task[None] | None = None
        self._client: Client | None = None
        self._tools: tuple[float, list[ToolDef]] | None = None  # when they were listed
        self._listing: asyncio.Task[list[ToolDef]] | None = None
        self._strays: set[asyncio.Task[Any]] = set()
        self.calls, self.used_at = 0, time.monotonic()

    @property
    def usable(self) -> bool:
        return self._client is not None and not self._retired and not self.ended

    @property
    def ended(self) -> bool:
        return self._task is None or self._task.done()

    @property
    def status(self) -> int | None:
        """What the server answered with to the first requests."""
        return self._opening.status

    async def open(self, timeout_s: float = CONNECT_S) -> None:
        """Raises a StackError when there is no session to be had."""
        self._task = asyncio.create_task(self._run(), name=f"mcp session {self.name}")
        self._task.add_done_callback(self._ended)
        ready = asyncio.create_task(self._ready.wait())
        try:
            await first_of(timeout_s, self._task, ready, self._opening.failed)
            if self._ready.is_set():
                return
            if not (self._task.done() or self._opening.failed.done()):
                raise Timeout(f"{self.name} did not answer within {timeout_s:g} s")
            raise self._opening.error(self.name) or UpstreamError(
                f"{self.name} does not answer as an MCP server does: check the endpoint"
            )
        finally:
            ready.cancel()
            if not self._ready.is_set():
                self._task.cancel()

    def retire(self) -> None:
        """Take no more calls."""
        self._retired = True
        if self.calls == 0:
            self._end.set()

    async def close(self) -> None:
        """At once, whatever is under way."""
        self._retired = True
        tasks = [task for task in (self._task, self._listing, *self._strays) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def call(self, tool_name: str, arguments: dict[str, Any], timeout_s: float) -> types.CallToolResult:
        """Raises Undelivered, a StackError, or MCPError with what the server says."""
        request = types.CallToolRequest(
            params=types.CallToolRequestParams(name=tool_name, arguments=arguments)
        )

        async def send() -> types.CallToolResult | types.InputRequiredResult:
            # Not Client.call_tool, which checks structured content against the server's own schema: a
            # hostile pattern in it would stop the event loop.
            return await self._open_client.session.send_request(request, _CALL_RESULT)

        try:
            result = await self._request(send, timeout_s)
        except MCPError as error:
            if error.code != types.HEADER_MISMATCH:
                raise
            self._tools = None  # what the server wants as headers is told by its list
            await self.tools()
            result = await self._request(send, timeout_s)
        if isinstance(result, types.InputRequiredResult):
            raise UpstreamError(f"tool {tool_name!r} of {self.name} asks for input, which nobody gives")
        return result

    async def tools(self) -> list[ToolDef]:
        """Listed at most once a minute, and again once the server says that they changed."""
        if self._tools is not None and time.monotonic() - self._tools[0] < LISTED_FOR_S:
            return self._tools[1]
        if self._listing is None or self._listing.done():
            self._listing = asyncio.create_task(self._list())
            self._listing.add_done_callback(_retrieve)
        return await asyncio.shield(self._listing)

    async def _list(self) -> list[ToolDef]:
        listed: list[types.Tool] = []
        cursor: str | None = None
        started = time.monotonic()
        for _ in range(MAX_PAGES):
            params = types.PaginatedRequestParams(cursor=cursor)
            left_s = max(0.0, started + LIST_S - time.monotonic())
            page = await self._request(partial(self._list_page, params), left_s)
            listed += page.tools
            cursor = page.next_cursor
            if cursor is None or len(listed) >= MAX_TOOLS:
                break
        found = definitions(listed, self.endpoint)
        self._tools = (time.monotonic(), found)
        return found

    async def _list_page(self, params: types.PaginatedRequestParams) -> types.ListToolsResult:
        return await self._open_client.session.list_tools(params=params)

    async def _request(self, send: Callable[[], Coroutine[Any, Any, T]], timeout_s: float) -> T:
        if self.ended:
            raise Undelivered(UpstreamError(f"{self.name} broke off the connection"))
        attempt = Attempt()
        context = contextvars.copy_context()
        context.run(current.set, attempt)
        self.calls += 1
        task = asyncio.create_task(send(), context=context)
        try:
            await first_of(timeout_s, task, attempt.failed)
            if task.done():
                return self._result_of(task, attempt)
            self.retire()  # whatever the answer is, it may come later and be in the way
            if attempt.failure is None:
                raise Timeout(f"{self.name} did not answer within {timeout_s:g} s")
            raise attempt.failure if attempt.delivered else Undelivered(attempt.failure)
        finally:
            self.calls -= 1
            self.used_at = time.monotonic()
            self._abandon(task)
            if self._retired and self.calls == 0:
                self._end.set()

    def _result_of(self, task: asyncio.Task[T], attempt: Attempt) -> T:
        try:
            return task.result()
        except MCPError as error:
            failure = attempt.error(self.name)
            if failure is None and error.code == types.PARSE_ERROR:
                raise UpstreamError(f"{self.name} answers what is not MCP") from error
            if failure is None and error.code != types.CONNECTION_CLOSED:
                raise
            self.retire()
            failure = failure or UpstreamError(f"{self.name} broke off the connection")
            raise (failure if attempt.delivered else Undelivered(failure)) from error
        except _GARBAGE as error:
            raise UpstreamError(f"{self.name} answers what is not MCP") from error

    def _abandon(self, task: asyncio.Task[Any]) -> None:
        """The server is told that nobody waits; that takes up to some seconds."""
        if not task.done():
            self._strays.add(task)
            task.add_done_callback(self._strays.discard)
            task.cancel()
        task.add_done_callback(_retrieve)

    @property
    def _open_client(self) -> Client:
        assert self._client is not None
        return self._client

    async def _run(self) -> None:
        """All that is entered is left in this task, as anyio demands."""
        current.set(self._opening)
        mode = "legacy" if self.sse else "auto"
        async with Client(
            self._transport(), mode=mode, message_handler=self._on_message, cache=None
        ) as client:
            self._client = client
            self._ready.set()
            listening = asyncio.create_task(self._listen(client))
            try:
                await self._end.wait()
            finally:
                listening.cancel()
                await asyncio.wait({listening})

    @asynccontextmanager
    async def _transport(self) -> AsyncGenerator[TransportStreams]:
        if self.sse:
            async with sse_client(
                self.endpoint,
                timeout=CONNECT_S,
                sse_read_timeout=READ_S,
                httpx_client_factory=self._new_client,
            ) as streams:
                yield streams
            return
        async with (
            self._new_client() as client,
            streamable_http_client(
                self.endpoint, http_client=client, max_sse_event_size=MAX_ANSWER_BYTES
            ) as streams,
        ):
            yield streams

    def _new_client(
        self,
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
    ) -> httpx2.AsyncClient:
        return open_client(self._headers, self._allowed)

    async def _listen(self, client: Client) -> None:
        """Servers of the newest protocol tell of changes only to those who ask."""
        tools = client.server_capabilities.tools
        if client.protocol_version not in MODERN_PROTOCOL_VERSIONS or not (tools and tools.list_changed):
            return
        try:
            async with client.listen(tools_list_changed=True) as changes:
                async for _ in changes:
                    self._tools = None
        except (MCPError, SubscriptionLost, TimeoutError):
            log.debug("%s tells nothing of changes", self.name)

    async def _on_message(self, message: object) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self._tools = None

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and self._ready.is_set():
            log.info("the session with %s broke: %s", self.name, type(error).__name__)


async def first_of(timeout_s: float, *futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """An error that nobody waits for any more is no news."""
    if not task.cancelled():
        task.exception()
