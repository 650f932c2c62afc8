"""Spans in SQL: written in batches, found by their attributes, read as spans, trees and traces."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar

from pydantic_core import from_json, to_json
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    delete,
    exists,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from stack.errors import BadRequest, NotFound
from stack.schemas.common import JsonObject
from stack.schemas.telemetry import Span, SpanStatus, SpanWithStatus, Trace
from stack.settings import Settings
from stack.store.database import Database, connect
from stack.store.tables import span_attributes, span_events, spans, traces
from stack.telemetry.conditions import FREQUENT, Condition, attribute_rows
from stack.telemetry.spans import EventRecord, SpanRecord, folded, microseconds, moment

MAX_TRACES = 1000  # of an answer
MAX_SPANS = 10_000  # of an answer
ORDERS = ("trace_id", "root_span_id", "start_time", "end_time")
_TOGETHER = 300  # ids in one statement: SQLite takes 32,766 variables, Postgres' driver as many

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """A span as it is kept."""

    id: int
    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    start_us: int
    end_us: int | None
    status: SpanStatus | None
    attributes: JsonObject

    def span(self, keys: Collection[str] | None = None) -> Span:
        """With the attributes that are asked for; None: all."""
        return Span(**self._fields(keys))

    def span_with_status(self, keys: Collection[str] | None = None) -> SpanWithStatus:
        return SpanWithStatus(**self._fields(keys), status=self.status)

    def chosen(self, keys: Collection[str] | None) -> JsonObject:
        if keys is None:
            return self.attributes
        return {key: value for key, value in self.attributes.items() if key in keys}

    def _fields(self, keys: Collection[str] | None) -> dict[str, Any]:
        return {
            "span_id": self.span_id,
            "trace_id": self.trace_id,
            "parent_span_id": self.parent_span_id,
            "name": self.name,
            "start_time": moment(self.start_us),
            "end_time": None if self.end_us is None else moment(self.end_us),
            "attributes": self.chosen(keys),
        }


class Spans:
    def __init__(self, database: Database) -> None:
        self._database, self._migrated = database, False

    async def write(self, records: Sequence[SpanRecord], events: Sequence[EventRecord] = ()) -> None:
        """Keep what they tell, all or nothing; of a span that is there already it is added."""
        told = folded(records)

        def work(connection: Connection) -> None:
            _write(connection, told, events)

        try:
            await self._transact(work)
        except IntegrityError:  # another process was told of the same span at the same time
            await self._transact(work)

    async def trace(self, trace_id: str) -> Trace:
        """Raises NotFound."""
        query = select(traces).where(traces.c.trace_id == _plain(trace_id), _alive(traces.c.expires_us))
        row = await self._query(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            raise NotFound("trace", trace_id)
        return _trace(row)

    async def span(self, trace_id: str, span_id: str) -> Found:
        """Raises NotFound."""
        here = and_(spans.c.trace_id == _plain(trace_id), spans.c.span_id == _plain(span_id))
        found = await self._read(_SELECT.where(here, _started()))
        if not found:
            raise NotFound("span", span_id)
        return found[0]

    async def events(self, trace_id: str, span_id: str | None = None) -> list[JsonObject]:
        """Log lines and metrics of a trace, or of one of its spans, the earliest first."""
        query = select(span_events).where(
            span_events.c.trace_id == _plain(trace_id), _alive(span_events.c.expires_us)
        )
        if span_id is not None:
            query = query.where(span_events.c.span_id == _plain(span_id))
        query = query.order_by(span_events.c.at_us, span_events.c.id).limit(MAX_SPANS)
        rows = await self._query(lambda connection: connection.execute(query).all())
        return [
            {"span_id": row.span_id, "timestamp": moment(row.at_us).isoformat()} | from_json(row.body)
            for row in rows
        ]

    async def tree(self, span_id: str, max_depth: int | None = None) -> list[Found]:
        """A span and what is below it, level by level; at depth 1 it is alone. Raises NotFound.

        Of spans of different traces with that id, the one that began last.
        """
        query = _SELECT.where(spans.c.span_id == _plain(span_id), _started())
        roots = await self._read(query.order_by(spans.c.start_us.desc(), spans.c.id.desc()).limit(1))
        if not roots:
            raise NotFound("span", span_id)
        return await self.below(roots, max_depth)

    async def below(self, roots: Sequence[Found], max_depth: int | None = None) -> list[Found]:
        """Spans and what is below them, each once. Raises BadRequest when there are too many."""
        if max_depth is not None and max_depth < 0:
            raise BadRequest(f"max_depth is {max_depth}; 1 is the span alone, null means all")
        found = {each.id: each for each in roots}
        level: list[Found] = list(roots)
        depth = 1
        while level and (max_depth is None or depth < max_depth):
            parents = _by_trace((each.trace_id, each.span_id) for each in level)
            children = await self._query(lambda connection, parents=parents: _children(connection, parents))  # type: ignore[misc]
            level = [each for each in children if each.id not in found]  # parents may go round in circles
            found |= {each.id: each for each in level}
            depth += 1
            if len(found) > MAX_SPANS:
                raise BadRequest(
                    f"more than {MAX_SPANS} spans are below: say a max_depth, or more attribute_filters"
                )
        return list(found.values())

    async def traces(
        self,
        conditions: Sequence[Condition],
        order_by: Sequence[str] = (),
        limit: int = 100,
        offset: int = 0,
    ) -> list[Trace]:
        """Those with a span that meets all conditions; the latest first unless an order is given.

        Raises BadRequest for an order that there is not.
        """
        query = select(traces).where(_alive(traces.c.expires_us))
        if conditions:
            query = query.where(await self._among(conditions, traces.c.trace_id, spans.c.trace_id))
        query = query.order_by(*_orders(order_by)).limit(min(limit, MAX_TRACES)).offset(offset)
        rows = await self._query(lambda connection: connection.execute(query).all())
        return [_trace(row) for row in rows]

    async def find(self, conditions: Sequence[Condition], limit: int) -> list[Found]:
        """The latest spans that meet all conditions."""
        query = _SELECT.where(_started())
        if conditions:
            query = query.where(await self._meeting(conditions))
        return await self._read(query.order_by(spans.c.start_us.desc(), spans.c.id.desc()).limit(limit))

    async def pages(self, conditions: Sequence[Condition], size: int) -> AsyncGenerator[list[Found]]:
        """All spans that meet all conditions, in the order in which they came."""
        after = 0
        while True:
            query = _SELECT.where(_started(), spans.c.id > after)
            if conditions:
                query = query.where(await self._meeting(conditions))
            page = await self._read(query.order_by(spans.c.id).limit(size))
            if not page:
                return
            yield page
            after = page[-1].id

    async def sweep(self, max_spans: int, together: int = 2000) -> int:
        """Delete what has expired, and the oldest above `max_spans`; how many spans. For a loop."""
        now, deleted = _now(), 0
        over = await self._over(max_spans)
        while True:
            old = spans.c.expires_us <= now
            if over is not None:
                old = old | (spans.c.start_us < over)
            ids = select(spans.c.id).where(old).limit(together)

            def work(connection: Connection, ids: Select[int] = ids) -> int:
                some = connection.scalars(ids).all()
                for part in _parts(some):
                    connection.execute(delete(span_attributes).where(span_attributes.c.span.in_(part)))
                    connection.execute(delete(spans).where(spans.c.id.in_(part)))
                return len(some)

            done = await self._transact(work)
            deleted += done
            if done < together:
                break
        await self._transact(lambda connection: _sweep_rest(connection, now, over))
        return deleted

    async def _over(self, max_spans: int) -> int | None:
        """Where the oldest of the spans begins that may stay, if there are too many."""
        query = select(spans.c.start_us).order_by(spans.c.start_us.desc()).offset(max_spans - 1).limit(1)
        return await self._query(lambda connection: connection.scalar(query))

    async def _meeting(self, conditions: Sequence[Condition]) -> ColumnElement[bool]:
        """On a row of `spans`: by the condition that the fewest meet, if they are few."""
        rarest, count = await self._rarest(conditions)
        rest = [each.holds() for each in conditions if each is not rarest]
        return and_(spans.c.id.in_(rarest.ids()) if count < FREQUENT else rarest.holds(), *rest)

    async def _among(self, conditions: Sequence[Condition], column: Any, of_span: Any) -> ColumnElement[bool]:
        """On a row with a column that a span has, too: whether there is one that meets the conditions."""
        rarest, count = await self._rarest(conditions)
        if count < FREQUENT:
            rest = [each.holds() for each in conditions if each is not rarest]
            return column.in_(select(of_span).where(spans.c.id.in_(rarest.ids()), _started(), *rest))  # type: ignore[no-any-return]
        return exists().where(of_span == column, _started(), *(each.holds() for each in conditions))

    async def _rarest(self, conditions: Sequence[Condition]) -> tuple[Condition, int]:
        def work(connection: Connection) -> tuple[int, int]:
            counts: list[int] = [connection.scalar(each.count()) or 0 for each in conditions]
            return min((count, number) for number, count in enumerate(counts))

        count, number = await self._query(work)
        return conditions[number], count

    async def _query(self, work: Callable[[Connection], T]) -> T:
        await self._ready()
        return await self._database.query(work)

    async def _transact(self, work: Callable[[Connection], T]) -> T:
        await self._ready()
        return await self._database.transact(work)

    async def _ready(self) -> None:
        """The database may come later than this process."""
        if not self._migrated:
            await self._database.migrate()
            self._migrated = True

    async def _read(self, query: Select[Any]) -> list[Found]:
        return await self._query(lambda connection: [_found(row) for row in connection.execute(query)])


@asynccontextmanager
async def open_spans(settings: Settings) -> AsyncGenerator[Spans]:
    """Of the telemetry's database, which need not be there yet."""
    database = connect(settings, settings.telemetry_database)
    try:
        yield Spans(database)
    finally:
        await database.close()


_COLUMNS = (
    spans.c.id,
    spans.c.trace_id,
    spans.c.span_id,
    spans.c.parent_span_id,
    spans.c.name,
    spans.c.start_us,
    spans.c.end_us,
    spans.c.status,
    spans.c.attributes,
)
_SELECT = select(*_COLUMNS)


def _by_trace(keys: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Span ids by their trace: SQLite uses no index for pairs in a list of pairs."""
    found: dict[str, list[str]] = {}
    for trace_id, span_id in keys:
        found.setdefault(trace_id, []).append(span_id)
    return found


def _children(connection: Connection, parents: Mapping[str, Sequence[str]]) -> list[Found]:
    found: list[Found] = []
    for trace_id, span_ids in parents.items():
        for some in _parts(span_ids):
            below = and_(spans.c.trace_id == trace_id, spans.c.parent_span_id.in_(some))
            rows = connection.execute(_SELECT.where(below, _started()).limit(MAX_SPANS + 1))
            found += [_found(row) for row in rows]
    return found


def _write(
    connection: Connection, told: dict[tuple[str, str], SpanRecord], events: Sequence[EventRecord]
) -> None:
    known: dict[tuple[str, str], Any] = {}
    for trace_id, span_ids in _by_trace(told).items():
        for some in _parts(span_ids):
            here = and_(spans.c.trace_id == trace_id, spans.c.span_id.in_(some))
            query = select(*_COLUMNS, spans.c.expires_us).where(here).with_for_update()
            known |= {(trace_id, row.span_id): row for row in connection.execute(query)}
    new = [record for key, record in told.items() if key not in known]
    attributes: list[dict[str, Any]] = []
    if new:
        returning = insert(spans).returning(spans.c.id, sort_by_parameter_order=True)
        ids = connection.scalars(returning, [_values(record) for record in new])
        for span, record in zip(ids, new, strict=True):
            attributes += attribute_rows(span, record)
    merged: list[SpanRecord] = list(new)
    for key, row in known.items():
        record = _record(row).with_later(told[key])
        merged.append(record)
        connection.execute(update(spans).where(spans.c.id == row.id).values(_values(record)))
        connection.execute(delete(span_attributes).where(span_attributes.c.span == row.id))
        attributes += attribute_rows(row.id, record)
    if attributes:
        connection.execute(insert(span_attributes), attributes)
    if events:
        rows = [
            {
                "trace_id": event.trace_id,
                "span_id": event.span_id,
                "at_us": event.at_us,
                "body": to_json(event.body).decode(),
                "expires_us": event.expires_us,
            }
            for event in events
        ]
        connection.execute(insert(span_events), rows)
    _write_traces(connection, [record for record in merged if record.name is not None])


def _write_traces(connection: Connection, started: Iterable[SpanRecord]) -> None:
    of_trace: dict[str, list[SpanRecord]] = {}
    for record in started:
        of_trace.setdefault(record.trace_id, []).append(record)
    for some in _parts(of_trace):
        query = select(traces).where(traces.c.trace_id.in_(some)).with_for_update()
        known = {row.trace_id: row for row in connection.execute(query)}
        for trace_id in some:
            row = known.get(trace_id)
            values = _trace_values(of_trace[trace_id], row)
            if row is None:
                connection.execute(insert(traces).values(trace_id=trace_id, **values))
            else:
                connection.execute(update(traces).where(traces.c.trace_id == trace_id).values(values))


def _trace_values(records: Sequence[SpanRecord], row: Any) -> dict[str, Any]:
    """The first span without a parent is the root; until there is one, the earliest span."""
    first = min(records, key=lambda record: (record.parent_span_id is not None, record.start_us))
    root, rooted, root_start = first.span_id, first.parent_span_id is None, first.start_us
    ends = [record.end_us for record in records if record.end_us is not None]
    starts, expires = [record.start_us for record in records], [record.expires_us for record in records]
    if row is not None:
        if row.rooted or (not rooted and row.start_us <= root_start):
            root, rooted = row.root_span_id, row.rooted
        starts.append(row.start_us)
        expires.append(row.expires_us)
        ends += [] if row.end_us is None else [row.end_us]
    return {
        "root_span_id": root,
        "rooted": rooted,
        "start_us": min(starts),
        "end_us": max(ends, default=None),
        "expires_us": max(expires),
    }


def _sweep_rest(connection: Connection, now: int, over: int | None) -> None:
    connection.execute(delete(span_events).where(span_events.c.expires_us <= now))
    gone = traces.c.expires_us <= now
    if over is not None:
        connection.execute(delete(span_events).where(span_events.c.at_us < over))
        gone = gone | (traces.c.start_us < over)
    left = exists().where(spans.c.trace_id == traces.c.trace_id, spans.c.name.is_not(None))
    connection.execute(delete(traces).where(gone, ~left))


def _values(record: SpanRecord) -> dict[str, Any]:
    return {
        "trace_id": record.trace_id,
        "span_id": record.span_id,
        "parent_span_id": record.parent_span_id,
        "name": record.name,
        "start_us": record.start_us,
        "end_us": record.end_us,
        "status": record.status,
        "attributes": to_json(record.attributes).decode(),
        "expires_us": record.expires_us,
    }


def _record(row: Any) -> SpanRecord:
    return SpanRecord(
        row.trace_id,
        row.span_id,
        row.expires_us,
        name=row.name,
        parent_span_id=row.parent_span_id,
        start_us=row.start_us,
        end_us=row.end_us,
        status=row.status,
        attributes=from_json(row.attributes),
    )


def _found(row: Any) -> Found:
    found = Found(*row)
    return replace(found, attributes=from_json(row.attributes))


def _trace(row: Any) -> Trace:
    end = None if row.end_us is None else moment(row.end_us)
    return Trace(
        trace_id=row.trace_id, root_span_id=row.root_span_id, start_time=moment(row.start_us), end_time=end
    )


def _orders(order_by: Sequence[str]) -> list[Any]:
    orders: list[Any] = []
    for each in order_by:
        name = each.removeprefix("-")
        if name not in ORDERS:
            raise BadRequest(
                f"order_by has {each[:80]!r}; write {', '.join(ORDERS)}, with - before it for descending"
            )
        column: Any = traces.c[name.replace("_time", "_us")]
        orders.append(column.desc() if each.startswith("-") else column.asc())
    return [*(orders or [traces.c.start_us.desc()]), traces.c.trace_id]


def _started() -> ColumnElement[bool]:
    return and_(spans.c.name.is_not(None), _alive(spans.c.expires_us))


def _alive(expires_us: ColumnElement[int]) -> ColumnElement[bool]:
    return expires_us > _now()


def _now() -> int:
    return microseconds(datetime.now(UTC))


def _plain(identifier: str) -> str:
    return identifier.replace("\0", "")  # which Postgres refuses


def _parts(items: Iterable[T]) -> Iterator[list[T]]:
    """So many together as one statement takes."""
    left = iter(items)
    while part := list(islice(left, _TOGETHER)):
        yield part
