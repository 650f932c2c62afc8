from collections.abc import Iterator

import httpx
import pytest
from llama_stack_client import LlamaStackClient

from tests.spec.wire import Wire


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def client(wire: Wire) -> Iterator[LlamaStackClient]:
    """A client that checks the answers against its own types."""
    with LlamaStackClient(
        base_url="http://stack",
        http_client=httpx.Client(transport=wire),
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        yield client
