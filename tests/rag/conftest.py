from __future__ import annotations

from collections.abc import Iterator

import pytest

from stack.rag.parse import Parser


@pytest.fixture(scope="module")
def parser() -> Iterator[Parser]:
    parser = Parser()
    yield parser
    parser.close()
