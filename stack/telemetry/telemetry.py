"""Telemetry: what the API does with events, traces and spans."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from stack.engine.base import Meter
from stack.schemas.common import JsonObject
from stack.schemas.telemetry import (
    GetSpanTreeRequest,
    LogEventRequest,
    QuerySpansRequest,
    QueryTracesRequest,
    SaveSpansToDatasetRequest,
    Span,
    SpanWithStatus,
    Trace,
)
from stack.settings import Settings
from stack.telemetry.conditions import checked
from stack.telemetry.export import Datasets, save_spans
from stack.telemetry.recording import recording
from stack.telemetry.spans import records_of
from stack.telemetry.store import Spans, open_spans
from stack.telemetry.writer import Writer

DEFAULT_TRACES = 100
MAX_FOUND = 1000  # spans that meet a query's conditions; with those below them there may be more


class Telemetry:
    def __init__(self, spans: Spans, writer: Writer, datasets: Datasets) -> None:
        self.spans, self.writer, self._datasets = spans, writer, datasets

    async def log(self, request: LogEventRequest) -> None:
        """Returns once it is stored."""
        record, event = records_of(request)
        await self.writer.keep(record, event)

    async def trace(self, trace_id: str) -> Trace:
        return await self.spans.trace(trace_id)

    async def span(self, trace_id: str, span_id: str) -> Span:
        return (await self.spans.span(trace_id, span_id)).span()

    async def events(self, trace_id: str, span_id: str | None) -> list[JsonObject]:
        await self.spans.trace(trace_id)
        return await self.spans.events(trace_id, span_id)

    async def tree(self, span_id: str, request: GetSpanTreeRequest) -> dict[str, SpanWithStatus]:
        found = await self.spans.tree(span_id, request.max_depth)
        return {each.span_id: each.span_with_status(request.attributes_to_return) for each in found}

    async def query_traces(self, request: QueryTracesRequest) -> list[Trace]:
        limit = DEFAULT_TRACES if request.limit is None else request.limit
        conditions = checked(request.attribute_filters)
        return await self.spans.traces(conditions, request.order_by or (), limit, request.offset or 0)

    async def query_spans(self, request: QuerySpansRequest) -> list[Span]:
        """The latest spans that meet the conditions, and those below them which have what is asked for."""
        found = await self.spans.find(checked(request.attribute_filters), MAX_FOUND)
        below = await self.spans.below(found, request.max_depth)
        keys = request.attributes_to_return
        return [each.span(keys) for each in below if has_any(each.attributes, keys)]

    async def export(self, request: SaveSpansToDatasetRequest) -> None:
        await save_spans(self.spans, self._datasets, request)


def has_any(attributes: JsonObject, keys: Sequence[str]) -> bool:
    return not keys or any(key in attributes for key in keys)


@asynccontextmanager
async def open_telemetry(settings: Settings, datasets: Datasets, meter: Meter) -> AsyncGenerator[Telemetry]:
    """Its store need not be there yet."""
    async with open_spans(settings) as spans:
        writer = Writer(spans, meter)
        try:
            with recording(settings, writer):
                yield Telemetry(spans, writer, datasets)
        finally:
            await writer.close()
