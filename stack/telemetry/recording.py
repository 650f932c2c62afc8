"""What this process does, into the store, and to a collector by setting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.trace import StatusCode
from pydantic import JsonValue

from stack.telemetry.spans import SpanRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from stack.engine.base import Meter
    from stack.settings import Settings
    from stack.telemetry.writer import Writer

_installed = False
_recorders: dict[asyncio.AbstractEventLoop, Callable[[ReadableSpan], None]] = {}  # one suffices in a loop


@contextmanager
def recording(settings: Settings, writer: Writer) -> Generator[None]:
    """Within it the spans of this process go to the writer, whose event loop is the running one."""
    loop = asyncio.get_running_loop()
    if not settings.telemetry or loop in _recorders:
        yield
        return
    _install(settings)
    ttl_us = int(settings.telemetry_days * 86400e6)

    def record(span: ReadableSpan) -> None:
        told = [_record(span, ttl_us)]
        if asyncio._get_running_loop() is loop:
            writer.offer(told)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(writer.offer, told)

    _recorders[loop] = record
    try:
        yield
    finally:
        del _recorders[loop]


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
            for record in list(_recorders.values()):
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
    context, stop = span.get_span_context(), (span.end_time or 0) // 1000
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
        attributes={key: _json_value(value) for key, value in (span.attributes or {}).items()},
    )


def _json_value(value: Any) -> JsonValue:
    return list(value) if isinstance(value, tuple) else value


@asynccontextmanager
async def open_recording(settings: Settings, meter: Meter) -> AsyncGenerator[Writer | None]:
    """For a process that answers no questions about traces. None: nothing is to be recorded."""
    from stack.telemetry.store import open_spans
    from stack.telemetry.writer import Writer

    if not settings.telemetry:
        yield None
        return
    async with open_spans(settings) as spans:
        writer = Writer(spans, meter)
        try:
            with recording(settings, writer):
                yield writer
        finally:
            await writer.close()
