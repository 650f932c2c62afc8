"""Telemetry: events in, traces and spans out."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue
from typing_extensions import TypeAliasType

from stack.schemas.common import DateTime, JsonObject, Schema
from stack.schemas.content import Scalar

SpanStatus = TypeAliasType("SpanStatus", Literal["ok", "error"])
LogSeverity = TypeAliasType("LogSeverity", Literal["verbose", "debug", "info", "warn", "error", "critical"])
QueryConditionOp = TypeAliasType("QueryConditionOp", Literal["eq", "ne", "gt", "lt"])


class SpanStartPayload(Schema):
    type: Literal["span_start"] = "span_start"
    name: str
    parent_span_id: str | None = None


class SpanEndPayload(Schema):
    type: Literal["span_end"] = "span_end"
    status: SpanStatus


StructuredLogPayload = TypeAliasType(
    "StructuredLogPayload", Annotated[SpanStartPayload | SpanEndPayload, Field(discriminator="type")]
)


class UnstructuredLogEvent(Schema):
    trace_id: str
    span_id: str
    timestamp: DateTime
    attributes: dict[str, Scalar] | None = None
    type: Literal["unstructured_log"] = "unstructured_log"
    message: str
    severity: LogSeverity


class MetricEvent(Schema):
    trace_id: str
    span_id: str
    timestamp: DateTime
    attributes: dict[str, Scalar] | None = None
    type: Literal["metric"] = "metric"
    metric: str
    value: int | float
    unit: str


class StructuredLogEvent(Schema):
    trace_id: str
    span_id: str
    timestamp: DateTime
    attributes: dict[str, Scalar] | None = None
    type: Literal["structured_log"] = "structured_log"
    payload: StructuredLogPayload


Event = TypeAliasType(
    "Event",
    Annotated[UnstructuredLogEvent | MetricEvent | StructuredLogEvent, Field(discriminator="type")],
)


class LogEventRequest(Schema):
    event: Event
    ttl_seconds: int


class Trace(Schema):
    trace_id: str
    root_span_id: str
    start_time: DateTime
    end_time: DateTime | None = None


class Span(Schema):
    span_id: str
    trace_id: str
    parent_span_id: str | None = None
    name: str
    start_time: DateTime
    end_time: DateTime | None = None
    attributes: JsonObject | None = None


class SpanWithStatus(Span):
    status: SpanStatus | None = None


class QueryCondition(Schema):
    key: str
    op: QueryConditionOp
    value: JsonValue


class QueryTracesRequest(Schema):
    attribute_filters: list[QueryCondition] | None = None
    limit: int | None = Field(None, ge=0)
    offset: int | None = Field(None, ge=0)
    order_by: list[str] | None = None


class QueryTracesResponse(Schema):
    data: list[Trace]


class GetSpanTreeRequest(Schema):
    attributes_to_return: list[str] | None = None
    max_depth: int | None = None


class QuerySpanTreeResponse(Schema):
    data: dict[str, SpanWithStatus] = Field(description="Span id to span")


class QuerySpansRequest(Schema):
    attribute_filters: list[QueryCondition]
    attributes_to_return: list[str]
    max_depth: int | None = None


class QuerySpansResponse(Schema):
    data: list[Span]


class SaveSpansToDatasetRequest(Schema):
    attribute_filters: list[QueryCondition]
    attributes_to_save: list[str]
    dataset_id: str
    max_depth: int | None = None
