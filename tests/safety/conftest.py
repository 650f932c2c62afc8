from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stack.context import Stack, open_stack
from stack.safety.shields import Shields
from stack.settings import Settings
from tests.safety.classifiers import make_classifier
from tests.store.examples import model


@pytest.fixture(scope="session")
def guard_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeBERTa-v2 with the labels of the first Prompt Guard, which reads 32 tokens."""
    return make_classifier(tmp_path_factory.mktemp("prompt-guard"))


class Served:
    """Models that are ready, on real SQLite, without a cluster."""

    def __init__(self) -> None:
        self.models: dict[str, Any] = {}
        self.stack: Stack

    async def add(self, model_id: str, inference: Any, **description: Any) -> None:
        if model_id not in self.models:
            await self.stack.models.register(model(model_id))
        self.models[model_id] = inference
        described = description or await inference.describe()
        await self.stack.model_status.set(model_id, "ready", None, {**described, "session": "s"})


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    served = Served()
    settings = Settings(home=tmp_path / "home")
    async with open_stack(settings, lambda model_id: served.models[model_id], "s") as stack:
        served.stack = stack
        yield served
        stack.shields.close()


@pytest.fixture
def shields(served: Served) -> Shields:
    return served.stack.shields
