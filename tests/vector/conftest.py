from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from stack.context import Stack, open_stack
from stack.engine.base import NoMeter
from stack.engine.embedding.model import EmbeddingModel, open_embedding_model
from stack.models.args import ModelArgs
from stack.schemas.vector_dbs import RegisterVectorDbRequest
from stack.settings import Settings
from tests.store.examples import model
from tests.vector.embedder import Embedder


@pytest.fixture(scope="session")
def minilm(minilm_dir: Path) -> Iterator[EmbeddingModel]:
    args = ModelArgs(model_id="mini", source=str(minilm_dir), model_type="embedding", dtype="float32")
    opened = open_embedding_model(args, minilm_dir, NoMeter())
    yield opened
    opened.close()


@pytest.fixture
def embedder(minilm: EmbeddingModel) -> Embedder:
    return Embedder(minilm)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@asynccontextmanager
async def opened(settings: Settings, embedder: Embedder) -> AsyncIterator[Stack]:
    """A stack with the embedding model `mini`, as one API replica has it."""
    async with open_stack(settings, lambda model_id: embedder, "s") as stack:
        await stack.models.declare(model("mini", model_type="embedding"))
        description = {"embedding_dimension": 384, "session": "s"}
        await stack.model_status.set("mini", "ready", None, description)
        yield stack


@pytest.fixture
async def stack(settings: Settings, embedder: Embedder) -> AsyncIterator[Stack]:
    """With an empty vector database `db`."""
    async with opened(settings, embedder) as stack:
        await stack.vector_dbs.register(RegisterVectorDbRequest(vector_db_id="db", embedding_model="mini"))
        yield stack
