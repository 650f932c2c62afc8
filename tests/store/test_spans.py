"""Spans in both databases: told in any order, found by their attributes, read as trees and traces."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from stack.errors import BadRequest, NotFound
from stack.schemas.telemetry import LogEventRequest, QueryCondition
from stack.store.database import Database
from stack.telemetry.conditions import checked
from stack.telemetry.spans import SpanRecord, records_of
from stack.telemetry.store import Spans

NOW = datetime.now(UTC).replace(microsecond=0)
LATER = int((NOW + timedelta(days=1)).timestamp() * 1e6)


@pytest.fixture
def store(database: Database) -> Spans:
    return Spans(database)


def start(span: str, parent: str | None = None, at: int = 0, trace: str = "t", **attributes: Any) -> Any:
    payload = {"type": "span_start", "name": f"name of {span}", "parent_span_id": parent}
    return event(span, at, trace, attributes, type="structured_log", payload=payload)


def end(span: str, at: int = 1, trace: str = "t", status: str = "ok", **attributes: Any) -> Any:
    payload = {"type": "span_end", "status": status}
    return event(span, at, trace, attributes, type="structured_log", payload=payload)


def event(span: str, at: int, trace: str, attributes: Any, ttl_seconds: int = 3600, **fields: Any) -> Any:
    timestamp = (NOW + timedelta(seconds=at)).isoformat()
    body = {"trace_id": trace, "span_id": span, "timestamp": timestamp, "attributes": attributes} | fields
    return LogEventRequest.model_validate({"event": body, "ttl_seconds": ttl_seconds})


async def tell(store: Spans, *requests: Any) -> None:
    for request in requests:
        told, happened = records_of(request)
        await store.write([told], [happened] if happened else [])


def where(**conditions: Any) -> Any:
    """`key=value`, or `key=(op, value)`."""
    filters = []
    for key, value in conditions.items():
        op, wanted = value if isinstance(value, tuple) else ("eq", value)
        filters.append(QueryCondition(key=key.replace("__", "."), op=op, value=wanted))
    return checked(filters)


async def found(store: Spans, **conditions: Any) -> list[str]:
    return sorted(each.span_id for each in await store.find(where(**conditions), 1000))


async def test_a_trace(store: Spans) -> None:
    await tell(store, start("a", at=0, user="u"), start("b", "a", at=1), start("c", "b", at=2))
    trace = await store.trace("t")
    assert (trace.root_span_id, trace.start_time, trace.end_time) == ("a", NOW, None)
    await tell(store, end("c", 3, model="m"), end("b", 4, status="error"), end("a", 5, model="n"))
    trace = await store.trace("t")
    assert (trace.root_span_id, trace.end_time) == ("a", NOW + timedelta(seconds=5))
    span = (await store.span("t", "a")).span_with_status()
    assert (span.name, span.attributes, span.status) == ("name of a", {"user": "u", "model": "n"}, "ok")
    assert (span.start_time, span.end_time) == (NOW, NOW + timedelta(seconds=5))
    tree = await store.tree("a")
    assert [(each.span_id, each.parent_span_id) for each in tree] == [("a", None), ("b", "a"), ("c", "b")]
    assert tree[1].status == "error"
    for depth, count in ((0, 1), (1, 1), (2, 2), (3, 3), (9, 3)):
        assert len(await store.tree("a", depth)) == count
    assert [each.span_id for each in await store.tree("b")] == ["b", "c"]
    with pytest.raises(BadRequest, match="max_depth is -1"):
        await store.tree("a", -1)
    for missing in (store.trace("none"), store.span("t", "none"), store.span("none", "a"), store.tree("\0")):
        with pytest.raises(NotFound):
            await missing


async def test_any_order_tells_the_same(store: Spans) -> None:
    told = [start("a", x=1), start("b", "a", at=1), end("b", 2, y=2), end("a", 3)]
    told.append(event("b", 2, "t", {}, type="metric", metric="score", value=0.5, unit="1"))
    seen = []
    for seed in range(6):
        trace = f"t{seed}"
        renamed = [each.model_copy(deep=True) for each in told]
        for each in renamed:
            each.event.trace_id = trace
        random.Random(seed).shuffle(renamed)
        if seed % 2:
            await tell(store, *renamed)
        else:
            pairs = [records_of(each) for each in renamed]
            await store.write(
                [record for record, _ in pairs], [happened for _, happened in pairs if happened]
            )
        spans = [await store.span(trace, span_id) for span_id in "ab"]
        seen.append([(each.name, each.start_us, each.end_us, each.attributes, each.status) for each in spans])
        assert (await store.trace(trace)).root_span_id == "a"
        assert (await store.events(trace))[0]["metric"] == "score"
    assert seen == [seen[0]] * 6
    assert seen[0][1][3] == {"y": 2, "score": 0.5}


async def test_a_parent_that_never_comes(store: Spans) -> None:
    await tell(store, start("late", "lost", at=5), end("late", 6))
    assert (await store.trace("t")).root_span_id == "late"
    await tell(store, start("early", "lost", at=1), end("early", 0))  # its clock ran backwards
    trace = await store.trace("t")
    assert (trace.root_span_id, trace.start_time) == ("early", NOW + timedelta(seconds=1))
    await tell(store, start("root", at=3))
    assert (await store.trace("t")).root_span_id == "root"


async def test_parents_that_go_round(store: Spans) -> None:
    await tell(store, start("a", "b"), start("b", "a"), start("c", "c"))
    assert {each.span_id for each in await store.tree("a")} == {"a", "b"}
    assert [each.span_id for each in await store.tree("c")] == ["c"]


async def test_an_end_without_a_start_is_no_span_yet(store: Spans) -> None:
    await tell(store, end("a"))
    assert await found(store) == []
    with pytest.raises(NotFound):
        await store.span("t", "a")
    with pytest.raises(NotFound):
        await store.trace("t")


async def test_conditions_respect_types(store: Spans) -> None:
    values: dict[str, Any] = {
        "one": 1, "half": 0.5, "text_one": "1", "true": True, "text_true": "true", "none": None, "b": "b",
        "long": "x" * 5000 + "1", "longer": "x" * 5000 + "2", "nul": "a\0",
    }  # fmt: skip
    await tell(store, *(start(name, x=value) for name, value in values.items()), start("without"))
    assert await found(store) == sorted([*values, "without"])
    for name, value in values.items():
        assert await found(store, x=value) == [name]
        assert await found(store, x=("ne", value)) == sorted(values.keys() - {name})
    assert await found(store, x=1.0) == ["one"]
    assert await found(store, x=("gt", 0.5)) == ["one"]
    assert await found(store, x=("lt", 2)) == ["half", "one"]
    assert await found(store, x=("gt", "b")) == ["long", "longer", "text_true"]
    assert await found(store, x=("lt", "b")) == ["nul", "text_one"]
    assert await found(store, nothing=("ne", 1)) == []
    for op, value in (("gt", True), ("lt", None), ("eq", [1]), ("eq", {})):
        with pytest.raises(BadRequest, match=r"attribute_filters\.0"):
            where(x=(op, value))


async def test_several_conditions(store: Spans) -> None:
    await tell(store, *(start(f"{n}", x=n % 2, y=n % 3) for n in range(12)))
    await tell(store, end("3", 2, status="error"))
    assert await found(store, x=1, y=0) == ["3", "9"]
    assert await found(store, span__name="name of 3", x=1) == ["3"]
    assert await found(store, span__status="error") == ["3"]
    assert await found(store, span__duration_ms=("gt", 1999)) == ["3"]


async def test_what_many_spans_meet_is_found_newest_first(
    store: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [
        SpanRecord(f"t{n}", "s", LATER, f"n{n}", start_us=n + 1, attributes={"all": 1, "few": n % 10})
        for n in range(200)
    ]
    await store.write(records)
    seen = []
    for frequent in (50, 5000):
        monkeypatch.setattr("stack.telemetry.conditions.FREQUENT", frequent)
        monkeypatch.setattr("stack.telemetry.store.FREQUENT", frequent)
        latest = await store.find(where(all=1), 3)
        assert [each.name for each in latest] == ["n199", "n198", "n197"]
        traces = await store.traces(where(all=1, few=3), limit=2)
        assert [each.trace_id for each in traces] == ["t193", "t183"]
        seen.append([each.id async for page in store.pages(where(few=3), 7) for each in page])
    assert seen[0] == seen[1]
    assert len(seen[0]) == 20


async def test_traces_in_order(store: Spans) -> None:
    for n in range(5):
        await tell(store, start("s", at=n, trace=f"t{n}", n=n), end("s", 10 - n, trace=f"t{n}"))
    assert [each.trace_id for each in await store.traces([])] == ["t4", "t3", "t2", "t1", "t0"]
    assert [each.trace_id for each in await store.traces([], ["start_time"], 2, 1)] == ["t1", "t2"]
    assert [each.trace_id for each in await store.traces([], ["-end_time"], 1)] == ["t0"]
    assert await store.traces([], [], 0) == []
    for order in ("1; DROP TABLE spans", "", "-", "rooted", "--start_time"):
        with pytest.raises(BadRequest, match="order_by has"):
            await store.traces([], [order])


async def test_what_has_expired_is_gone(store: Spans) -> None:
    await tell(
        store, event("a", 0, "t", {}, 0, type="structured_log", payload=start("a").event.payload.model_dump())
    )
    assert await found(store) == []
    with pytest.raises(NotFound):
        await store.trace("t")
    await tell(store, start("b", trace="u"))
    assert await store.sweep(100) == 1
    assert await found(store) == ["b"]


async def test_of_too_many_the_oldest_go(store: Spans) -> None:
    await store.write(
        [SpanRecord(f"t{n}", "s", LATER, "n", start_us=n + 1, attributes={"x": n}) for n in range(30)]
    )
    assert await store.sweep(10, together=7) == 20
    assert [each.trace_id for each in await store.traces([], ["start_time"])] == [
        f"t{n}" for n in range(20, 30)
    ]
    assert await found(store, x=3) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"trace_id": ""}, "event.trace_id"),
        ({"span_id": "x" * 256}, "event.span_id"),
        ({"trace_id": "a\0"}, "event.trace_id"),
        ({"attributes": {str(n): n for n in range(1001)}}, "1001 keys"),
    ],
)
def test_events_that_are_refused(change: dict[str, Any], reason: str) -> None:
    request = start("a")
    bad = request.model_copy(update={"event": request.event.model_copy(update=change)})
    with pytest.raises(BadRequest, match=reason):
        records_of(bad)
    with pytest.raises(BadRequest, match="ttl_seconds is -1"):
        records_of(request.model_copy(update={"ttl_seconds": -1}))
