"""The queue before the store: bounded, patient, and never in anybody's way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from stack.engine.base import NoMeter
from stack.errors import NotReady, Overloaded
from stack.settings import Settings
from stack.telemetry import metrics, writer
from stack.telemetry.spans import SpanRecord
from stack.telemetry.store import Spans, open_spans
from stack.telemetry.writer import Writer

LATER_US = 4 * 10**15


class Counts(NoMeter):
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count(self, name: str, value: float = 1.0) -> None:
        self.counts[name] += int(value)


def record(number: int, text: str = "", expires_us: int = LATER_US) -> SpanRecord:
    return SpanRecord(
        "t",
        f"s{number}",
        expires_us,
        name="n",
        start_us=1,
        end_us=2,
        attributes={"text": text} if text else {},
    )


@pytest.fixture
def meter() -> Counts:
    return Counts()


@pytest.fixture
async def spans(tmp_path: Path) -> AsyncIterator[Spans]:
    async with open_spans(Settings(home=tmp_path)) as spans:
        yield spans


async def test_what_does_not_fit_is_dropped_and_counted(spans: Spans, meter: Counts) -> None:
    queue = Writer(spans, meter, limit=10)
    queue.offer([record(number) for number in range(15)])
    with pytest.raises(Overloaded, match="10 events wait"):
        await queue.keep(record(99))
    await queue.flush()
    assert meter.counts == {metrics.STORED: 10, metrics.DROPPED: 5}
    await queue.close()
    queue.offer([record(100)])
    assert meter.counts[metrics.DROPPED] == 6
    assert len(await spans.find([], 100)) == 10


async def test_what_waits_is_stored_at_the_end(spans: Spans, meter: Counts) -> None:
    queue = Writer(spans, meter)
    queue.offer([record(number) for number in range(3000)])
    await queue.close()
    assert meter.counts == {metrics.STORED: 3000}


@pytest.fixture
def small_disk() -> Iterator[None]:
    """A database takes at most 1.6 MB."""

    def limit(connection: Any, _: object) -> None:
        connection.execute("PRAGMA max_page_count=400")

    event.listen(Engine, "connect", limit)
    yield
    event.remove(Engine, "connect", limit)


@pytest.mark.usefixtures("small_disk")
async def test_a_full_disk(spans: Spans, meter: Counts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits is told; what nobody waits for stays in the queue until there is room."""
    monkeypatch.setattr(writer, "RETRY_S", 0.05)
    queue = Writer(spans, meter)
    filled = 0
    with suppress(NotReady):
        while filled < 100:
            await queue.keep(record(filled, "x" * 50_000, expires_us=1))
            filled += 1
    assert 10 < filled < 40
    queue.offer([record(1000 + number, "y" * 10_000) for number in range(20)])
    await queue.flush(0.3)
    assert not meter.counts[metrics.DROPPED]
    assert await spans.sweep(1000) >= filled
    async with asyncio.timeout(20):
        await queue.flush(20)
    assert +meter.counts == {metrics.STORED: filled + 20}
    await queue.close()
