from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from stack.engine.batching.batcher import Batcher
from tests.engine.batching.asking import Make
from tests.engine.toy import END, ToyRunner, toy_tokenizer


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Batcher] = []

    def make(runner: ToyRunner, **options: Any) -> Batcher:
        made.append(Batcher(runner, toy_tokenizer(), **{"end_tokens": [END], **options}))
        return made[-1]

    yield make
    for batcher in made:
        batcher.close()
