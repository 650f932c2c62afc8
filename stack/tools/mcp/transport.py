"""httpx2, which the package mcp speaks, over the egress transport, which is httpx.

Nothing that goes wrong is raised while a request is sent: an exception would end the session, and with it
the other calls on it. It is noted in the attempt, and the request is answered with a 502.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Collection, Mapping

import httpx
import httpx2

from stack.egress import EgressTransport, bounded_body
from stack.errors import BadRequest, StackError, Timeout, UpstreamError
from stack.tools.mcp.attempt import Attempt, current, named

MAX_ANSWER_BYTES = 8 << 20
CONNECT_S = 10.0
WRITE_S = 30.0
END_S = 0.01  # how long an event waits for the end of its stream
READ_S = 900.0  # between two pieces of an answer: sessions end much sooner, by their own rules

SESSION_ID = "mcp-session-id"
_FRAMING = ("content-encoding", "content-length", "transfer-encoding")
_UNDELIVERED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, BadRequest)


def open_client(headers: Mapping[str, str], allowed: Collection[str]) -> httpx2.AsyncClient:
    """The HTTP client of one session, with connections of its own."""
    return httpx2.AsyncClient(
        transport=Egress(allowed),
        headers={"user-agent": "stack", **headers, "accept-encoding": "gzip"},
        timeout=httpx2.Timeout(connect=CONNECT_S, read=READ_S, write=WRITE_S, pool=CONNECT_S),
        trust_env=False,
    )


class BrokenAnswer(httpx2.StreamError):
    """An answer ended before its end; the attempt has the reason."""


class Egress(httpx2.AsyncBaseTransport):
    def __init__(self, allowed: Collection[str]) -> None:
        self._transport = EgressTransport(allowed)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        attempt, name = current.get() or Attempt(), named(str(request.url))
        posts = request.method == "POST"
        attempt.delivered = attempt.delivered or posts
        try:
            response = await self._transport.handle_async_request(
                httpx.Request(
                    request.method,
                    str(request.url),
                    headers=request.headers.raw,
                    content=await request.aread(),
                    extensions={"timeout": request.extensions["timeout"]},
                )
            )
        except (StackError, httpx.HTTPError) as error:
            if isinstance(error, _UNDELIVERED):
                attempt.delivered = False
            _note(attempt, error, name, ends=posts)
            return httpx2.Response(502)
        if posts or attempt.status is None:
            attempt.status = response.status_code
        if posts and response.status_code == 404 and SESSION_ID in request.headers:
            attempt.delivered = False  # the session is unknown there, and nothing was done
        return await _answer(response, attempt, name, posts)

    async def aclose(self) -> None:
        await self._transport.aclose()


async def _answer(response: httpx.Response, attempt: Attempt, name: str, posts: bool) -> httpx2.Response:
    headers = [(key, value) for key, value in response.headers.multi_items() if key not in _FRAMING]
    if response.is_redirect:  # its body is of no use, and would be read without a bound
        await response.aclose()
        return httpx2.Response(response.status_code, headers=headers)
    body = _Body(response, attempt, name, posts)
    return httpx2.Response(response.status_code, headers=headers, stream=body)


class _Body(httpx2.AsyncByteStream):
    """Decoded, and of a POST bounded; the stream of a GET is bounded by the size of its events."""

    def __init__(self, response: httpx.Response, attempt: Attempt, name: str, posts: bool) -> None:
        self._response, self._attempt, self._name, self._posts = response, attempt, name, posts
        limit = MAX_ANSWER_BYTES if posts else sys.maxsize
        self._chunks = aiter(bounded_body(response, limit, f"the answer of {name}"))
        streamed = response.headers.get("content-type", "").startswith("text/event-stream")
        self._reads_ahead = posts and streamed
        self._next: asyncio.Task[bytes] | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while chunk := await (self._after() if self._next is None else self._next):
                # The package closes a stream as soon as it has its answer, and with it a connection whose
                # end of the stream is on its way: the end goes first, so that the next call finds it.
                if self._reads_ahead:
                    self._next = asyncio.create_task(self._after())
                    await asyncio.wait({self._next}, timeout=END_S)
                yield chunk
        except (StackError, httpx.HTTPError) as error:
            _note(self._attempt, error, self._name, ends=self._posts)
            raise BrokenAnswer(self._name) from error

    async def _after(self) -> bytes:
        """The next piece, empty at the end."""
        async for chunk in self._chunks:
            if chunk:
                return chunk
        return b""

    async def aclose(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait({self._next})
            if not self._next.cancelled():
                self._next.exception()
        await self._response.aclose()


def _note(attempt: Attempt, error: Exception, name: str, ends: bool) -> None:
    """`ends`: the attempt is over, and nothing more will come of it."""
    failure = _failure(error, name)
    if ends:
        attempt.fail(failure)
    else:
        attempt.failure = attempt.failure or failure


def _failure(error: Exception, name: str) -> StackError:
    if isinstance(error, BadRequest) and "is larger than" in str(error):
        return UpstreamError(str(error))
    if isinstance(error, StackError):
        return error
    if isinstance(error, httpx.TimeoutException):
        return Timeout(f"{name} did not answer in time")
    if isinstance(error, httpx.ConnectError):
        return UpstreamError(f"no connection to {name}: the host is unknown, or does not answer")
    return UpstreamError(f"{name} broke off its answer")
