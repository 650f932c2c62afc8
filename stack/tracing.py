"""Spans of what this server does, by OpenTelemetry's API; `stack.telemetry.recording` keeps them.

Whoever does something that is worth a span takes `TRACER`, which costs next to nothing while nobody records.
A span's parent is the current one of the task; another process is told of it as a `traceparent` (W3C).
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACER = trace.get_tracer("stack")

_PROPAGATOR = TraceContextTextMapPropagator()
_COMMON = context.create_key("stack-common-attributes")
_CONTENT = context.create_key("stack-content-allowed")


def parent_of(traceparent: str) -> Context:
    """The context of another process's span."""
    return _PROPAGATOR.extract({"traceparent": traceparent}, Context())


def traceparent() -> str | None:
    """Of the current span, for another process; None when nobody records it."""
    return None if recorded() is None else _of(context.get_current())


def recorded() -> Context | None:
    """The current context, if its span is recorded."""
    return context.get_current() if trace.get_current_span().get_span_context().trace_flags.sampled else None


def go_on(traceparent: str | None, content: bool | None = None) -> None:
    """What this task does from now on belongs to that span of another process, with its `content_allowed`."""
    current = None if traceparent is None else parent_of(traceparent)
    context.attach(context.set_value(_CONTENT, content, current))


@contextmanager
def content(allowed: bool | None) -> Generator[None]:
    """Within it spans may hold what is said, or may not, whatever the settings say; None: as they say."""
    token = context.attach(context.set_value(_CONTENT, allowed))
    try:
        yield
    finally:
        context.detach(token)


def content_allowed() -> bool | None:
    """As whoever asks was told it; None: as the settings say."""
    allowed: bool | None = context.get_value(_CONTENT)  # type: ignore[assignment]
    return allowed


def _of(current: Context) -> str | None:
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, current)
    return carrier.get("traceparent")


@contextmanager
def common(attributes: Mapping[str, Any]) -> Generator[None]:
    """Within it every span that begins in this process has these attributes, too."""
    token = context.attach(context.set_value(_COMMON, {**_common(), **attributes}))
    try:
        yield
    finally:
        context.detach(token)


def _common() -> Mapping[str, Any]:
    found: Mapping[str, Any] = context.get_value(_COMMON) or {}  # type: ignore[assignment]
    return found


def begin(name: str, attributes: Mapping[str, Any], kind: SpanKind = SpanKind.INTERNAL) -> Span:
    """A span that is not current, and that `end` ends."""
    return TRACER.start_span(name, kind=kind, attributes={**_common(), **attributes})


@contextmanager
def span(name: str, attributes: Mapping[str, Any]) -> Generator[Span]:
    """A span around a block, current within it; an error that leaves the block is its status.

    Not around a `yield`: a generator may end in another context than it began in. There `begin` and `end`.
    """
    with use_span(begin(name, attributes), end_on_exit=False) as current:
        try:
            yield current
        except BaseException as error:
            end(current, error)
            raise
        end(current)


def end(current: Span, error: BaseException | None = None) -> None:
    """An error is told by its class only: its text may quote what a caller said."""
    if error is not None and not isinstance(error, GeneratorExit | asyncio.CancelledError):
        current.set_attribute("error.type", type(error).__name__)
        current.set_status(StatusCode.ERROR)
    current.end()


def took(name: str, parent: Context, start_ns: int, end_ns: int) -> None:
    """A span that is over; nanoseconds since 1970."""
    TRACER.start_span(name, parent, start_time=start_ns).end(end_ns)
