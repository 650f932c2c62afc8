"""Telemetry: events in, traces and spans out."""

from __future__ import annotations

from typing import Any

from stack.api.routing import api_router
from stack.context import CurrentStack
from stack.schemas.telemetry import (
    GetSpanTreeRequest,
    LogEventRequest,
    QuerySpansRequest,
    QuerySpansResponse,
    QuerySpanTreeResponse,
    QueryTracesRequest,
    QueryTracesResponse,
    SaveSpansToDatasetRequest,
    Span,
    Trace,
)

router = api_router("Telemetry")


@router.post("/v1/telemetry/events")
async def log_event(request: LogEventRequest, stack: CurrentStack) -> None:
    """Log the start or the end of a span, a line of text, or a metric, which its span has as an attribute."""
    await stack.telemetry.log(request)


@router.post("/v1/telemetry/traces")
async def query_traces(request: QueryTracesRequest, stack: CurrentStack) -> QueryTracesResponse:
    """Traces with a span that meets all filters: 100 unless `limit` says more, at most 1,000.

    `order_by` has trace_id, root_span_id, start_time or end_time, with `-` before it for descending; default:
    the latest first.
    """
    return QueryTracesResponse(data=await stack.telemetry.query_traces(request))


@router.get("/v1/telemetry/traces/{trace_id:path}/spans/{span_id:path}")
async def get_span(trace_id: str, span_id: str, stack: CurrentStack) -> Span:
    """A span with all its attributes."""
    return await stack.telemetry.span(trace_id, span_id)


@router.get("/v1/telemetry/traces/{trace_id:path}/events", include_in_schema=False)
async def get_events(trace_id: str, stack: CurrentStack, span_id: str | None = None) -> dict[str, Any]:
    """Log lines and metrics of a trace, or of one of its spans."""
    return {"data": await stack.telemetry.events(trace_id, span_id)}


@router.get("/v1/telemetry/traces/{trace_id:path}")
async def get_trace(trace_id: str, stack: CurrentStack) -> Trace:
    """A trace's root and times."""
    return await stack.telemetry.trace(trace_id)


@router.post("/v1/telemetry/spans")
async def query_spans(request: QuerySpansRequest, stack: CurrentStack) -> QuerySpansResponse:
    """The latest 1,000 spans that meet all filters, and what is below them down to `max_depth` (1: nothing).

    Of these, those that have any of `attributes_to_return`, which are the attributes that come back.
    """
    return QuerySpansResponse(data=await stack.telemetry.query_spans(request))


@router.post("/v1/telemetry/spans/export")
async def save_spans_to_dataset(request: SaveSpansToDatasetRequest, stack: CurrentStack) -> None:
    """Add all spans that a query would find, as rows, to a dataset; it is registered if it is not there."""
    await stack.telemetry.export(request)


@router.post("/v1/telemetry/spans/{span_id:path}/tree")
async def get_span_tree(
    span_id: str, request: GetSpanTreeRequest, stack: CurrentStack
) -> QuerySpanTreeResponse:
    """A span and all that is below it, down to `max_depth` (1: the span alone), by their ids."""
    return QuerySpanTreeResponse(data=await stack.telemetry.tree(span_id, request))
