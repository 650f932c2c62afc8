"""Documents fetched and parsed by workers on the cluster, on Ray Data."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from stack.errors import TRANSIENT, StackError
from stack.files.blobs import Blobs
from stack.files.files import Files
from stack.rag.bulk import Outcome, Place
from stack.rag.load import Loader
from stack.rag.parse import Parser
from stack.schemas.tools import RAGDocument
from stack.settings import get_settings
from stack.store.database import open_database
from stack.store.storage import open_storage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Batch = dict[str, NDArray[np.object_]]

DOCUMENTS_AT_A_TIME = 16  # in one group: enough for a full call to the embedding model, and little to repeat
CPUS = 0.01  # that a worker reserves: on a laptop the models have nearly all
CPUS_PER_WORKER = 4  # of the cluster
FETCH_TRIES = 3


async def load(path: str, places: Sequence[Place]) -> AsyncGenerator[list[Outcome]]:
    """As `stack.rag.bulk.Load`: Ray Data runs ahead of the caller by a few groups only."""
    groups = await asyncio.to_thread(_groups, path, places)
    try:
        while (group := await asyncio.to_thread(next, groups, None)) is not None:
            yield group
    finally:
        groups = None  # type: ignore[assignment]  # ends Ray Data's execution


def _groups(path: str, places: Sequence[Place]) -> Iterator[list[Outcome]]:
    import ray.data

    from stack.jobs.cluster import cluster_cpus

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    workers = max(1, cluster_cpus() // CPUS_PER_WORKER)
    rows = [{"path": path, "place": astuple(place)} for place in places]
    loaded = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // DOCUMENTS_AT_A_TIME)).map_batches(
        Worker,
        batch_size=None,  # a group
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
        num_cpus=CPUS,
    )
    for batch in loaded.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
        yield [pickle.loads(outcome) for outcome in batch["outcome"]]


class Worker:
    """Ray Data calls it with a group of places. It has stores and an event loop of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._open = AsyncExitStack()
        self._loop.run_until_complete(self._start())

    async def _start(self) -> None:
        settings = get_settings()
        database = await self._open.enter_async_context(open_database(settings))
        self._storage = await self._open.enter_async_context(open_storage(settings))
        parser = Parser()
        self._open.callback(parser.close)
        self._loader = Loader(settings, Files(database, Blobs(database, self._storage)), parser)

    def __call__(self, batch: Batch) -> dict[str, Any]:
        places = [Place(*map(int, place)) for place in batch["place"]]
        outcomes = self._loop.run_until_complete(self._load(list(batch["path"]), places))
        return {"outcome": [pickle.dumps(outcome) for outcome in outcomes]}

    async def _load(self, paths: Sequence[str], places: Sequence[Place]) -> list[Outcome]:
        return list(await asyncio.gather(*map(self._outcome, paths, places)))

    async def _outcome(self, path: str, place: Place) -> Outcome:
        """A document whose server does not answer is tried again; then that is the document's error."""
        line = await self._storage.read(path, place.start, place.end)
        document = RAGDocument.model_validate_json(line)
        for tries_left in reversed(range(FETCH_TRIES)):
            try:
                return Outcome(place.item, await self._loader.load(document))
            except StackError as error:
                if tries_left == 0 or not isinstance(error, TRANSIENT):
                    return Outcome(place.item, None, str(error))
            await asyncio.sleep(2.0)
        raise AssertionError
