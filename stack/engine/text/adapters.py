"""Adapters from their sources onto a runner that computes in a batcher's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stack.engine import metrics
from stack.engine.adapters.weights import read_adapter
from stack.engine.openmp import in_ending_thread
from stack.errors import BadRequest, UpstreamError

if TYPE_CHECKING:
    from stack.engine.base import Adapter, Meter, RunnerAdapters
    from stack.engine.batching.batcher import Batcher


class RunnerPlaces:
    """`Places` on a runner."""

    def __init__(
        self, batcher: Batcher, adapters: RunnerAdapters, fetch: Callable[[str], Path], meter: Meter
    ) -> None:
        self._batcher, self._adapters, self._fetch, self._meter = batcher, adapters, fetch, meter
        self._held: set[str] = set()

    async def load(self, adapter: Adapter) -> None:
        prepared = await asyncio.to_thread(in_ending_thread, self._prepare, adapter)
        try:
            await self._batcher.call(partial(self._adapters.add, adapter.key, prepared))
        except BaseException:
            await self._batcher.call(partial(self._adapters.remove, adapter.key))
            raise
        self._held.add(adapter.key)
        self._meter.gauge(metrics.ADAPTERS, len(self._held))

    async def unload(self, key: str) -> None:
        await self._batcher.call(partial(self._adapters.remove, key))
        self._held.discard(key)
        self._meter.gauge(metrics.ADAPTERS, len(self._held))

    def _prepare(self, adapter: Adapter) -> Any:
        """All that can be done beside the compute thread."""
        try:
            return self._adapters.prepare(read_adapter(self._fetch(adapter.source)))
        except (BadRequest, UpstreamError) as error:
            raise type(error)(f"model {adapter.model_id!r} cannot be served: {error}") from error
        except OSError as error:
            raise BadRequest(
                f"model {adapter.model_id!r} cannot be served: {adapter.source} cannot be read "
                f"({error.strerror or type(error).__name__})"
            ) from error
