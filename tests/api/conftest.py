from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from stack.app import create_app
from stack.context import Stack, open_stack
from stack.settings import Settings
from tests.api.fake import FakeInference
from tests.store.examples import model


@pytest.fixture
def fake() -> FakeInference:
    return FakeInference()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", openai_api_key="sk-secret-of-the-operator")  # type: ignore[arg-type]


@pytest.fixture
async def app(settings: Settings, fake: FakeInference) -> AsyncIterator[FastAPI]:
    """The real application on real SQLite, with two models that are ready."""
    app = create_app(lambda: open_stack(settings, lambda model_id: fake, "s"))
    async with app.router.lifespan_context(app):
        stack: Stack = app.state.stack
        await stack.models.declare(model("tiny"))
        await stack.model_status.set("tiny", "ready", None, {"context_length": 2048, "session": "s"})
        await stack.models.register(model("org/embedder", model_type="embedding"))
        await stack.model_status.set(
            "org/embedder", "ready", description={"embedding_dimension": 384, "session": "s"}
        )
        yield app


@pytest.fixture
def stack(app: FastAPI) -> Stack:
    found: Stack = app.state.stack
    return found


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://stack") as client:
        yield client
