"""What is reported of requests, tools and jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from stack import metrics
from stack.app import create_app
from stack.context import Stack, open_stack
from stack.engine.base import NoMeter
from stack.settings import Settings
from stack.tools import metrics as tools
from stack.upkeep import JobCounts


class Book(NoMeter):
    """All reports, by name and labels."""

    def __init__(self, labels: dict[str, str] | None = None, entries: Counter[Any] | None = None) -> None:
        self.labels = labels or {}
        self.entries: Counter[Any] = Counter() if entries is None else entries

    def labelled(self, **labels: str) -> Book:
        return Book(self.labels | labels, self.entries)

    def count(self, name: str, value: float = 1.0) -> None:
        self.entries[name, *self.labels.values()] += int(value)

    def gauge(self, name: str, value: float) -> None:
        self.entries[name, *self.labels.values()] = int(value)

    def observe(self, name: str, value: float) -> None:
        assert value >= 0
        self.count(name)


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
async def stack(tmp_path: Any, book: Book) -> AsyncIterator[Stack]:
    async with open_stack(Settings(home=tmp_path / "home"), meter=book) as stack:
        yield stack


async def test_requests_and_tools(tmp_path: Any, book: Book) -> None:
    settings = Settings(home=tmp_path / "home")
    app = create_app(lambda: open_stack(settings, meter=book))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://stack") as client,
    ):
        for path in ("/v1/models", "/v1/models", "/v1/models/none", "/nowhere"):
            await client.get(path)
        for method in ("A", "B"):
            await client.request(method, "/v1/models")
        body = {"tool_name": "wolfram_alpha", "kwargs": {"query": "pi"}}
        invoked = await client.post("/v1/tool-runtime/invoke", json=body)
        assert invoked.json()["error_message"]
    found = book.entries
    assert found[metrics.REQUESTS, "/v1/models", "GET", "200"] == 2
    assert found[metrics.REQUESTS, "/v1/models/{model_id}", "GET", "404"] == 1
    assert found[metrics.REQUESTS, "none", "GET", "404"] == 1
    others = {key[1:]: count for key, count in found.items() if key[0] == metrics.REQUESTS and "other" in key}
    assert others == {("/v1/models", "other", "405"): 2}, others
    assert found[metrics.REQUEST_SECONDS, "/v1/models"] == 4
    group = "builtin::wolfram_alpha"
    assert [found[name, group] for name in (tools.CALLS, tools.FAILED_CALLS, tools.CALL_SECONDS)] == [1, 1, 1]


async def test_jobs(stack: Stack, book: Book) -> None:
    counts = JobCounts(stack.jobs, book)
    await stack.jobs.submit("batch", {}, "a")
    await stack.jobs.submit("batch", {}, "b")
    await counts.report()
    await stack.jobs.cancel("a")
    await stack.jobs.cancel("b")
    await counts.report()
    found = {key: count for key, count in book.entries.items() if key[0] == metrics.JOBS}
    assert found == {(metrics.JOBS, "batch", "scheduled"): 0, (metrics.JOBS, "batch", "cancelled"): 2}
