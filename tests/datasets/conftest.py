from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from stack.datasets.datasets import Datasets
from stack.files.blobs import Blobs
from stack.files.files import Files
from stack.schemas.datasets import Dataset, RegisterDatasetRequest
from stack.settings import Settings
from stack.store.database import open_database
from stack.store.lance import open_lance
from stack.store.storage import open_storage


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "root").mkdir()
    return Settings(home=tmp_path / "home", file_root=tmp_path / "root")


@pytest.fixture
async def datasets(settings: Settings) -> AsyncIterator[Datasets]:
    async with opened(settings) as datasets:
        yield datasets


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Datasets]:
    async with (
        open_database(settings) as database,
        open_storage(settings) as storage,
        open_lance(settings) as lance,
    ):
        yield Datasets(settings, database, lance, Files(database, Blobs(database, storage)))


def opened(settings: Settings) -> AbstractAsyncContextManager[Datasets]:
    """The datasets of a stack, as every process of it opens them."""
    return _opened(settings)


async def register(datasets: Datasets, source: dict[str, object], **fields: object) -> Dataset:
    body = {"purpose": "eval/question-answer", "dataset_id": "d", "source": source} | fields
    return await datasets.register(RegisterDatasetRequest.model_validate(body))


def qa(count: int, first: int = 0) -> list[dict[str, object]]:
    return [{"question": f"q{i}", "answer": f"a{i}", "i": i} for i in range(first, first + count)]
