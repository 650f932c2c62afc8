"""Pure ASGI middleware, outermost first: Tracing, Authentication, BodyLimit, Disconnects."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from random import getrandbits
from time import perf_counter
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode, get_current_span, use_span
from starlette.exceptions import HTTPException

from stack import tracing
from stack.engine.base import Meter, NoMeter
from stack.errors import TooLarge, Unauthorized
from stack.logs import trace_id
from stack.metrics import REQUEST_SECONDS, REQUESTS
from stack.tracing import TRACER, parent_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from stack.context import Stack

log = logging.getLogger(__name__)

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # a caller may write any
_NOT_RECORDED = ("/v1/telemetry/", "/v1/health", "/ui", "/docs")  # asked all the time, by those who look on

_OPEN = re.compile(r"/v1/health|/docs|/openapi\.json|/ui(/[\w.-]+)?")  # without a key
_NO_KEY = (
    "this server answers only with an API key: send the header Authorization: Bearer KEY; "
    "`stack keys create NAME` on the server makes one"
)
_REFUSED = "this server does not know the API key; `stack keys create NAME` on the server makes one"


class Tracing:
    """Gives each request a trace id (the caller's `traceparent` or a new one), a span, a log line, and for an
    error that nothing else handled the answer 500.

    `traceresponse` names the request's span, as in W3C's Trace Context, level 2: feedback is logged on it.
    """

    def __init__(self, app: ASGIApp, meter: Callable[[], Meter] = NoMeter) -> None:
        """`meter` is asked for while the application runs."""
        self.app, self._meter = app, meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        span = _begin(scope)
        context = span.get_span_context()
        trace = f"{context.trace_id:032x}" if context.is_valid else f"{getrandbits(128):032x}"
        headers = [(b"x-trace-id", trace.encode())]
        if span.is_recording():
            headers.append((b"traceresponse", f"00-{trace}-{context.span_id:016x}-01".encode()))
        status, start = 0, perf_counter()

        async def send_traced(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *headers]}
            await send(message)

        token = trace_id.set(trace)
        try:
            with use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
                await self.app(scope, receive, send_traced)
        except Exception as error:  # the edge of the process: nobody else answers
            if status:  # too late for an answer; the server cuts the connection
                log.exception("failed after the response had started")
                raise
            from stack.api.errors import response_for

            await response_for(error)(scope, receive, send_traced)
        finally:
            seconds = perf_counter() - start
            if log.isEnabledFor(logging.INFO):
                fields = {
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status or "gone",
                    "ms": f"{seconds * 1e3:.1f}",
                }
                log.info("request", extra={"fields": fields})
            route = _route(scope)
            _end(span, scope, route, status)
            of_path = self._meter().labelled(path=route or "none")  # "route" is Serve's own label
            of_path.observe(REQUEST_SECONDS, seconds)
            method = scope["method"] if scope["method"] in _METHODS else "other"
            of_path.labelled(method=method, status=str(status)).count(REQUESTS)
            trace_id.reset(token)


def _begin(scope: Scope) -> Span:
    """The request's span: below the caller's, if it sent one."""
    given = next((value for name, value in scope["headers"] if name == b"traceparent"), b"")
    parent = parent_of(str(given, "ascii")) if _TRACEPARENT.match(given) else Context()
    if scope["path"].startswith(_NOT_RECORDED):
        return get_current_span(parent)
    attributes = {"http.request.method": scope["method"], "url.path": scope["path"]}
    return TRACER.start_span(scope["method"], parent, SpanKind.SERVER, attributes)


def _route(scope: Scope) -> str | None:
    """As the specification writes it; None: there is no such path."""
    path: str | None = getattr(scope.get("route"), "path", None)
    return None if path is None else path.replace(":path}", "}")


def _end(span: Span, scope: Scope, route: str | None, status: int) -> None:
    if not span.is_recording():
        return
    if route is not None:
        span.update_name(f"{scope['method']} {route}")
        span.set_attribute("http.route", route)
    if status:
        span.set_attribute("http.response.status_code", status)
    if not status or status >= 500:
        span.set_status(StatusCode.ERROR)
    span.end()


class Authentication:
    """Knows who asks by `Authorization: Bearer KEY`, and what telemetry may keep of it.

    With STACK_REQUIRE_API_KEY only those with a key are answered, but for health and the pages at /ui and
    /docs. Otherwise a key that nobody made is as good as none: many clients send one.
    """

    def __init__(self, app: ASGIApp, stack: Callable[[], Stack]) -> None:
        """`stack` is asked for while the application runs."""
        self.app, self._stack = app, stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        stack = self._stack()
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, token = given.decode("latin-1").partition(" ")
        key = await stack.api_keys.find(token.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            if stack.settings.require_api_key and not _OPEN.fullmatch(scope["path"]):
                raise Unauthorized(_REFUSED if given else _NO_KEY)
            await self.app(scope, receive, send)
            return
        get_current_span().set_attribute("stack.api_key", key.name)
        with tracing.content(key.record_content):
            await self.app(scope, receive, send)


class BodyLimit:
    """Answers 413 to a body above `limit` bytes: at once where content-length tells, else while reading."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if length.isdigit() and int(length) > self.limit:
            from stack.api.errors import response_for

            await response_for(TooLarge(self._detail(scope)))(scope, receive, send)
            return
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                # FastAPI would turn any other error of reading a body into a 400.
                raise HTTPException(TooLarge.status, self._detail(scope))
            return message

        await self.app(scope, receive_counted, send)

    def _detail(self, scope: Scope) -> str:
        detail = (
            f"the request body is larger than {self.limit / 2**20:g} MiB, the most that this server takes"
        )
        if scope["path"].startswith("/v1/files/session:"):
            detail += "; a file is sent in several requests, each with a part of it"
        return detail


class Disconnects:
    """Cancels the handler when its client goes away, whether it streams or still computes.

    Watching costs a task, so it begins only when a request has lasted `delay_s`; most are answered before.
    """

    def __init__(self, app: ASGIApp, delay_s: float = 0.01) -> None:
        self.app, self.delay_s = app, delay_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        watch = _Watch(receive, has_body=_has_body(scope))
        timer = asyncio.get_running_loop().call_later(self.delay_s, watch.begin)
        try:
            await self.app(scope, watch.receive, send)
        except asyncio.CancelledError:
            if not watch.gone:  # somebody else's, e.g. a shutdown
                raise
            watch.handler.uncancel()
        finally:
            timer.cancel()
            watch.end()


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


class _Watch:
    """Shares `receive` between the application, which reads the body, and the task that waits for the end."""

    def __init__(self, receive: Receive, *, has_body: bool) -> None:
        self._receive, self._body_left = receive, has_body
        self._body_told = False  # the application has been given the end of the body
        self._due = False
        self._task: asyncio.Task[None] | None = None
        task = asyncio.current_task()
        assert task is not None
        self.handler = task
        self.gone = False

    def begin(self) -> None:
        """The request has lasted long enough: watch, as soon as its body has been read."""
        self._due = True
        if not self._body_left and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._wait())

    def end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def receive(self) -> Message:
        if self._task is not None:
            if not self._body_told:  # a request without a body, whose one message the watch took
                self._body_told = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await asyncio.shield(self._task)
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._body_left, self._body_told = False, True
            if self._due:
                self.begin()
        return message

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self.handler.cancel()
