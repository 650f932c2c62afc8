from __future__ import annotations

from pathlib import Path

import pytest

from tests.safety.classifiers import make_classifier


@pytest.fixture(scope="session")
def guard_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeBERTa-v2 with the labels of the first Prompt Guard, which reads 32 tokens."""
    return make_classifier(tmp_path_factory.mktemp("prompt-guard"))
