"""Spans of this server, by OpenTelemetry: recorded in the store, and sent to a collector by setting.

Whoever does something that is worth a span takes `TRACER`, which costs next to nothing while nobody records.
A span's parent is the current one of the task; another process is told of it as a `traceparent` (W3C).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, StatusCode, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from stack.telemetry.spans import SpanRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from stack.settings import Settings
    from stack.telemetry.writer import Writer

TRACER = trace.get_tracer("stack")

_PROPAGATOR = TraceContextTextMapPropagator()
_installed = False
_recorders: list[Callable[[ReadableSpan], None]] = []  # of the stacks that are open in this process


def parent_of(traceparent: str | None) -> Context | None:
    """The context of another process's span; None: that of this task."""
    return None if traceparent is None else _PROPAGATOR.extract({"traceparent": traceparent})


def traceparent() -> str | None:
    """Of the current span, for another process; None when there is none."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent")


@contextmanager
def span(name: str, attributes: Mapping[str, Any] | None = None) -> Generator[Span]:
    """A span around a block, current within it; an error that leaves the block is its status.

    Not around a `yield`: a generator may end in another context than it began in. There `begin` and `end`.
    """
    with use_span(TRACER.start_span(name, attributes=attributes), end_on_exit=False) as current:
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


@contextmanager
def recording(settings: Settings, writer: Writer) -> Generator[None]:
    """Within it the spans of this process go to the writer, whose event loop is the running one."""
    if not settings.telemetry:
        yield
        return
    _install(settings)
    loop = asyncio.get_running_loop()
    ttl_us = int(settings.telemetry_days * 86400e6)

    def record(span: ReadableSpan) -> None:
        told = [_record(span, ttl_us)]
        if asyncio._get_running_loop() is loop:
            writer.offer(told)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(writer.offer, told)

    _recorders.append(record)
    try:
        yield
    finally:
        _recorders.remove(record)


def _install(settings: Settings) -> None:
    """OpenTelemetry has one provider for all of a process's life: that of the first stack to record."""
    global _installed
    if _installed:
        return
    _installed = True
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    class ToRecorders(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            for record in _recorders:
                record(span)

    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.telemetry_sample)),
        resource=Resource.create({SERVICE_NAME: "stack"}),
    )
    provider.add_span_processor(ToRecorders())
    if settings.telemetry_otlp_url:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(settings.telemetry_otlp_url)))
    trace.set_tracer_provider(provider)


def _record(span: ReadableSpan, ttl_us: int) -> SpanRecord:
    context, start, stop = (
        span.get_span_context(),
        (span.start_time or 0) // 1000,
        (span.end_time or 0) // 1000,
    )
    assert context is not None
    return SpanRecord(
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        expires_us=stop + ttl_us,
        name=span.name,
        parent_span_id=None if span.parent is None else f"{span.parent.span_id:016x}",
        start_us=(span.start_time or 0) // 1000,
        end_us=stop,
        status="error" if span.status.status_code is StatusCode.ERROR else "ok",
        attributes={
            key: list(value) if isinstance(value, tuple) else value
            for key, value in (span.attributes or {}).items()
        },
    )
