"""What runs inside the replicas of models and of the reconciler."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from stack.errors import BadRequest, StackError
from stack.models.args import ModelArgs
from stack.serve.cluster import ServeCluster
from stack.serve.meter import ServeMeter
from stack.tracing import go_on

if TYPE_CHECKING:
    from stack.engine.adapters.loaded import Adapters
    from stack.engine.base import Adapter, Dialog, LocalModel, Priority, Probabilities
    from stack.engine.embedding.model import EmbeddingModel
    from stack.engine.embedding.vectors import Spans, Vectors
    from stack.engine.text.model import TextModel
    from stack.schemas.inference import (
        ChatCompletionRequest,
        ChatCompletionResponseStreamChunk,
        CompletionRequest,
        CompletionResponseStreamChunk,
        EmbeddingsRequest,
    )
    from stack.serve import ReconcilerArgs
    from stack.settings import Settings

log = logging.getLogger(__name__)

SWEEP_S = 3.0  # how often a replica looks which of its adapters were deleted

T = TypeVar("T")


class Model:
    """A replica of one model."""

    def __init__(self, args: ModelArgs) -> None:
        from stack.engine.open import open_model
        from stack.logs import configure_logging
        from stack.settings import get_settings

        settings = get_settings()
        configure_logging(settings.log_level)
        self._settings = settings
        self._meter = ServeMeter(model_id=args.model_id)
        self._inference: LocalModel = open_model(args, settings, self._meter)
        self._recording: contextlib.AsyncExitStack | None = None
        self._adapters: AdapterLoader | None = None
        self._adapters_held = args.max_adapters

    async def completion(
        self,
        request: CompletionRequest,
        priority: Priority,
        adapter: Adapter | None = None,
        traceparent: str | None = None,
    ) -> AsyncGenerator[CompletionResponseStreamChunk]:
        await self._belong(traceparent)
        if adapter is None:
            stream = self._inference.completion(request, priority)
        else:
            stream = (await self._with(adapter)).completion(request, priority, adapter)
        async with contextlib.aclosing(_generator(stream)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def chat_completion(
        self,
        request: ChatCompletionRequest,
        priority: Priority,
        adapter: Adapter | None = None,
        traceparent: str | None = None,
    ) -> AsyncGenerator[ChatCompletionResponseStreamChunk]:
        await self._belong(traceparent)
        if adapter is None:
            stream = self._inference.chat_completion(request, priority)
        else:
            stream = (await self._with(adapter)).chat_completion(request, priority, adapter)
        async with contextlib.aclosing(_generator(stream)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _belong(self, traceparent: str | None) -> None:
        """What this task does belongs to the caller's span. The first one starts the recording."""
        if traceparent is None:
            return
        if self._recording is None:
            from stack.telemetry.recording import open_recording

            self._recording = contextlib.AsyncExitStack()
            await self._recording.enter_async_context(open_recording(self._settings, self._meter))
        go_on(traceparent)

    async def _with(self, adapter: Adapter) -> TextModel:
        """The model, once it holds the adapter."""
        from stack.engine.text.model import TextModel

        if not isinstance(self._inference, TextModel):
            raise BadRequest(f"model {adapter.model_id!r}: its base model generates no text")
        if self._adapters is None:
            self._adapters = AdapterLoader(self._inference.adapters, self._settings, self._adapters_held)
        await self._adapters.load(adapter)
        return self._inference

    async def vectors(
        self, request: EmbeddingsRequest, first_index: int, priority: Priority, whole: bool
    ) -> Vectors:
        """A part of an embedding call; only embedding models are asked."""
        return await cast("EmbeddingModel", self._inference).vectors(request, first_index, priority, whole)

    async def token_spans(self, texts: list[str]) -> list[Spans]:
        """Only embedding models are asked."""
        return await cast("EmbeddingModel", self._inference).token_spans(texts)

    async def classify(self, texts: list[str | Dialog]) -> list[list[Probabilities]]:
        return await self._inference.classify(texts)

    async def describe(self) -> dict[str, Any]:
        return await self._inference.describe()

    def __del__(self) -> None:
        """Serve calls this when the replica ends, after its requests have."""
        if hasattr(self, "_inference"):  # else the constructor failed
            self._inference.close()


class AdapterLoader:
    """Loads adapters as Serve's multiplexed models, so that requests go where their adapter is already.

    Serve remembers which were asked for last; `Adapters` decides what is in memory, since it knows which are
    generating and which were deleted.
    """

    def __init__(self, adapters: Adapters, settings: Settings, limit: int) -> None:
        self._adapters, self._settings = adapters, settings
        self._asked: dict[str, Adapter] = {}
        self._multiplexed = serve.multiplexed(max_num_models_per_replica=limit)(self._loader())
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep())

    async def load(self, adapter: Adapter) -> None:
        self._asked[adapter.key] = adapter
        try:
            await self._multiplexed(adapter.key)
        finally:
            self._asked.pop(adapter.key, None)

    def _loader(self) -> Callable[[str], Awaitable[str]]:
        async def load_adapter(key: str) -> str:
            async with self._adapters.use(self._asked[key]):
                return key

        return load_adapter

    async def _sweep(self) -> None:
        """Free what is no longer registered."""
        from stack.models.adapters import registered
        from stack.store.database import open_database
        from stack.store.model_status import ModelStatuses

        while True:
            try:
                async with open_database(self._settings) as database:
                    statuses = ModelStatuses(database)
                    while True:
                        await asyncio.sleep(SWEEP_S)
                        held = [(adapter.model_id, adapter.source) for adapter in self._adapters.held]
                        if held:
                            await self._adapters.keep({a.key for a in await registered(statuses, held)})
            except StackError:
                log.exception("looking for deleted adapters failed, trying again")
                await asyncio.sleep(SWEEP_S)


def _generator(stream: AsyncIterator[T]) -> AsyncGenerator[T]:
    """The engines' streams are generators; Inference only promises an iterator."""
    assert isinstance(stream, AsyncGenerator)
    return stream


class ReconcilerLoop:
    """The one replica that keeps the model applications as the registry wants them, jobs running, and the
    stores tidy. The three do not wait for each other.
    """

    def __init__(self, args: ReconcilerArgs) -> None:
        from stack.logs import configure_logging
        from stack.settings import get_settings

        self._args, self._settings = args, get_settings()
        configure_logging(self._settings.log_level)
        loop = asyncio.get_running_loop()
        loops = (self._models(), self._jobs(), self._stores())
        self._tasks = [loop.create_task(each) for each in loops]

    async def _models(self) -> None:
        from stack.models.reconciler import Reconciler
        from stack.schemas.models import Model as ModelResource
        from stack.store.database import open_database
        from stack.store.model_status import ModelStatuses
        from stack.store.registry import Registry

        async with open_database(self._settings) as database:
            reconciler = Reconciler(
                ServeCluster(),
                Registry(database, ModelResource),
                ModelStatuses(database),
                self._args.remote_models,
            )
            await self._repeat(reconciler.step)

    async def _jobs(self) -> None:
        from stack.jobs.cluster import RayLauncher
        from stack.jobs.logs import sweep
        from stack.jobs.reconciler import Reconciler
        from stack.store.database import open_database
        from stack.store.jobs import Jobs
        from stack.store.storage import open_storage

        settings = self._settings
        async with open_database(settings) as database, open_storage(settings) as storage:
            reconciler = Reconciler(
                RayLauncher(),
                Jobs(database),
                attempts=settings.job_attempts,
                at_once=settings.jobs_at_once,
                retention=timedelta(days=settings.job_retention_days),
                sweep_files=lambda job_id: sweep(settings, storage, job_id),
            )
            await self._repeat(reconciler.step)

    async def _stores(self) -> None:
        from stack.upkeep import open_upkeep

        async with open_upkeep(self._settings, ServeMeter()) as upkeep:
            await self._repeat(upkeep.step, OSError, RuntimeError)  # LanceDB's, e.g. of an object store

    async def _repeat(self, step: Callable[[], Awaitable[None]], *passing: type[Exception]) -> None:
        """`passing`: further errors that the next step may not have."""
        caught: tuple[type[Exception], ...] = (StackError, RayError, RayServeException, *passing)
        while True:
            try:
                await step()
            except caught:
                log.exception("reconciling failed, trying again")
            await asyncio.sleep(self._args.interval_s)

    async def check_health(self) -> None:
        """Serve restarts the replica when one of its loops has died."""
        for task in self._tasks:
            if task.done():
                task.result()
