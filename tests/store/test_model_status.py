from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from stack.errors import NotFound
from stack.schemas.models import Model
from stack.store.database import Database
from stack.store.model_status import ModelStatuses
from stack.store.registry import Registry
from tests.store.examples import model


@pytest.fixture
def statuses(database: Database) -> ModelStatuses:
    return ModelStatuses(database)


async def test_set_get_list_delete(statuses: ModelStatuses) -> None:
    assert await statuses.get("a") is None
    await statuses.set("a", "loading", "fetching weights")
    await statuses.set("b", "ready", description={"context_length": 8192})
    first = await statuses.get("a")
    assert first is not None
    assert (first.state, first.detail, first.description) == ("loading", "fetching weights", {})
    assert first.updated_at is not None
    assert abs(datetime.now(UTC) - first.updated_at) < timedelta(minutes=1)
    assert [(row.identifier, row.state) for row in await statuses.list()] == [
        ("a", "loading"),
        ("b", "ready"),
    ]
    await statuses.delete("a")
    assert await statuses.get("a") is None


async def test_the_time_moves_only_when_something_changes(statuses: ModelStatuses) -> None:
    await statuses.set("a", "loading")
    first = await statuses.get("a")
    await statuses.set("a", "loading")
    assert await statuses.get("a") == first
    await statuses.set("a", "ready", description={"n": 1})
    changed = await statuses.get("a")
    assert changed is not None
    assert first is not None
    assert (changed.state, changed.description) == ("ready", {"n": 1})
    assert changed.updated_at is not None
    assert first.updated_at is not None
    assert changed.updated_at > first.updated_at


async def test_find_joins_the_model_and_its_status(database: Database, statuses: ModelStatuses) -> None:
    registry = Registry(database, Model)
    await registry.register(model("org/a"))
    await registry.register(model("b"))
    await statuses.set("org/a", "failed", "no weights in the folder")
    await statuses.set("ghost", "deleting")
    found, status = await statuses.find("org/a")
    assert found == model("org/a")
    assert status is not None
    assert (status.identifier, status.state, status.detail) == ("org/a", "failed", "no weights in the folder")
    assert await statuses.find("b") == (model("b"), None)
    assert [(found.identifier, status and status.state) for found, status in await statuses.find_all()] == [
        ("b", None),
        ("org/a", "failed"),
    ]
    with pytest.raises(NotFound):
        await statuses.find("ghost")
