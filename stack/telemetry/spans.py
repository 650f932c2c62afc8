"""What is told of spans: the form in which events of clients and spans of this server are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from stack.errors import BadRequest
from stack.schemas.common import JsonObject
from stack.schemas.telemetry import (
    LogEventRequest,
    MetricEvent,
    SpanEndPayload,
    SpanStartPayload,
    SpanStatus,
    StructuredLogEvent,
    UnstructuredLogEvent,
)
from stack.store.tables import ID_LENGTH

MAX_TTL_S = 100 * 365 * 86400
MAX_ATTRIBUTES = 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """What one event tells of a span. Times are microseconds since 1970."""

    trace_id: str
    span_id: str
    expires_us: int
    name: str | None = None  # None: its start is not told here
    parent_span_id: str | None = None
    start_us: int = 0
    end_us: int | None = None
    status: SpanStatus | None = None
    attributes: JsonObject = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        return self.trace_id, self.span_id

    def with_later(self, later: SpanRecord) -> SpanRecord:
        """What both tell; where they differ, the later one counts."""
        started = later if later.name is not None else self
        ended = later if later.end_us is not None else self
        return replace(
            self,
            expires_us=max(self.expires_us, later.expires_us),
            name=started.name,
            parent_span_id=started.parent_span_id,
            start_us=started.start_us or self.start_us,
            end_us=ended.end_us,
            status=ended.status,
            attributes=self.attributes | later.attributes,
        )


@dataclass(frozen=True, slots=True)
class EventRecord:
    """A log line or a metric of a span."""

    trace_id: str
    span_id: str
    expires_us: int
    at_us: int
    body: JsonObject


def records_of(request: LogEventRequest) -> tuple[SpanRecord, EventRecord | None]:
    """What an event tells. A metric is an attribute of its span, too.

    Raises BadRequest for ids that are empty or too long, too many attributes, and a time to live below 0.
    """
    event = request.event
    for name, value in (("trace_id", event.trace_id), ("span_id", event.span_id)):
        _check_id(f"event.{name}", value)
    attributes: JsonObject = dict(event.attributes or {})
    if len(attributes) > MAX_ATTRIBUTES:
        raise BadRequest(f"event.attributes has {len(attributes)} keys; at most {MAX_ATTRIBUTES} are kept")
    if not 0 <= request.ttl_seconds <= MAX_TTL_S:
        raise BadRequest(f"ttl_seconds is {request.ttl_seconds}; write 0 to {MAX_TTL_S}")
    at_us = microseconds(event.timestamp)
    expires_us = microseconds(datetime.now(UTC)) + request.ttl_seconds * 1_000_000
    told = SpanRecord(event.trace_id, event.span_id, expires_us, start_us=at_us)
    match event:
        case StructuredLogEvent(payload=SpanStartPayload(name=name, parent_span_id=parent)):
            if parent is not None:
                _check_id("event.payload.parent_span_id", parent)
            name = name.replace("\0", "\N{REPLACEMENT CHARACTER}")  # which Postgres refuses
            return replace(told, name=name, parent_span_id=parent, attributes=attributes), None
        case StructuredLogEvent(payload=SpanEndPayload(status=status)):
            return replace(told, end_us=at_us, status=status, attributes=attributes), None
        case StructuredLogEvent():
            raise AssertionError("unreachable")
        case MetricEvent():
            body: JsonObject = {"metric": event.metric, "value": event.value, "unit": event.unit}
            told = replace(told, attributes={event.metric: event.value})
        case UnstructuredLogEvent():
            body = {"message": event.message, "severity": event.severity}
    body |= {"type": event.type, "attributes": attributes}
    return told, EventRecord(event.trace_id, event.span_id, expires_us, at_us, body)


def folded(records: Iterable[SpanRecord]) -> dict[tuple[str, str], SpanRecord]:
    """One record a span, of those that follow one another."""
    found: dict[tuple[str, str], SpanRecord] = {}
    for record in records:
        earlier = found.get(record.key)
        found[record.key] = record if earlier is None else earlier.with_later(record)
    return found


def microseconds(time: datetime) -> int:
    return (time.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)


def moment(at_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at_us)


def _check_id(field_name: str, value: str) -> None:
    if not value or len(value) > ID_LENGTH or "\0" in value:
        raise BadRequest(f"{field_name} has 1 to {ID_LENGTH} characters, and no NUL")
