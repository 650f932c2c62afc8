from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from stack.bounded import Limits
from stack.scoring.workers import Workers


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    """With less time for a row than a server gives, so that tests of costly rows are quick."""
    limits = Limits(cpu_s=0.5, wall_s=60, memory_bytes=1 << 30, stack_bytes=16 << 20)
    mathematics = Limits(cpu_s=2, wall_s=60, memory_bytes=2 << 30, stack_bytes=16 << 20)
    workers = Workers(limits, mathematics)
    yield workers
    workers.close()
