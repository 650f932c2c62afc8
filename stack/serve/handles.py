"""Models in other processes: `Inference` over a Serve handle."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from pydantic import BaseModel
from ray import serve
from ray.exceptions import RayActorError, RayError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from stack.engine.base import Adapter, Dialog, Priority, Probabilities
from stack.engine.embedding.vectors import Spans, Vectors, response_of, slices, text_slices
from stack.errors import NotReady, Overloaded, StackError
from stack.models.names import MODEL_DEPLOYMENT, app_name
from stack.tracing import traceparent

if TYPE_CHECKING:
    from stack.schemas.inference import (
        ChatCompletionRequest,
        ChatCompletionResponseStreamChunk,
        CompletionRequest,
        CompletionResponseStreamChunk,
        EmbeddingsRequest,
        EmbeddingsResponse,
    )


PARTS_AT_A_TIME = 8  # of one embedding call


def session_name() -> str:
    """Of the running Ray cluster: another one after a restart."""
    name: str = ray.get_runtime_context().get_session_name()
    return name


@lru_cache(maxsize=256)
def _model(model_id: str) -> ReplicaInference:
    """A model's handle; one for each process, since a handle keeps connections and queue lengths."""
    return ReplicaInference(model_id)


@lru_cache(maxsize=4096)
def inference(model_id: str, adapter: Adapter | None = None) -> ReplicaInference:
    """A model over its handle, or an adapter over its base model's."""
    model = _model(model_id)
    return model if adapter is None else model.adapted(adapter)


@lru_cache(maxsize=4096)
def background_inference(model_id: str, adapter: Adapter | None = None) -> ReplicaInference:
    """As `inference`, at batch priority: what jobs ask, their judges and agents too."""
    return inference(model_id, adapter).in_background()


class ReplicaInference:
    """`Inference` of a model that runs in replicas, over a Serve handle."""

    def __init__(self, model_id: str) -> None:
        self._model_id = model_id
        self._handle: DeploymentHandle[Any] = serve.get_deployment_handle(
            MODEL_DEPLOYMENT, app_name(model_id), _check_exists=False
        )
        self._adapter: tuple[Adapter] | tuple[()] = ()  # a further argument of calls that generate
        self._lowest = Priority.INTERACTIVE

    def adapted(self, adapter: Adapter) -> ReplicaInference:
        """The model with an adapter. Serve sends its requests to replicas that have the adapter already."""
        adapted = copy.copy(self)
        adapted._model_id, adapted._adapter = adapter.model_id, (adapter,)
        adapted._handle = self._handle.options(multiplexed_model_id=adapter.key)
        return adapted

    def in_background(self) -> ReplicaInference:
        """The model with batch priority for all that it is asked."""
        quiet = copy.copy(self)
        quiet._lowest = Priority.BATCH
        return quiet

    def completion(
        self, request: CompletionRequest, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[CompletionResponseStreamChunk]:
        return self._stream("completion", request, priority)

    def chat_completion(
        self, request: ChatCompletionRequest, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[ChatCompletionResponseStreamChunk]:
        return self._stream("chat_completion", request, priority)

    async def embeddings(self, request: EmbeddingsRequest) -> EmbeddingsResponse:
        return response_of(await self.vectors(request))

    async def vectors(
        self, request: EmbeddingsRequest, priority: Priority = Priority.INTERACTIVE, whole: bool = False
    ) -> Vectors:
        """float32 [contents, dimension]. A large call goes out in parts, to whichever replicas are free."""
        priority = max(priority, self._lowest)
        parts = await self._all(
            ("vectors", part, first_index, priority, whole) for first_index, part in slices(request)
        )
        return np.concatenate(parts)

    async def token_spans(self, texts: Sequence[str]) -> list[Spans]:
        parts = await self._all(("token_spans", part) for part in text_slices(texts))
        return [spans for part in parts for spans in part]

    async def classify(self, texts: Sequence[str | Dialog]) -> list[list[Probabilities]]:
        (found,) = await self._all([("classify", list(texts))])
        answer: list[list[Probabilities]] = found
        return answer

    async def _all(self, calls: Iterable[tuple[Any, ...]]) -> list[Any]:
        """The answers to calls, each (method, arguments …); the first error is raised."""
        under_way = asyncio.Semaphore(PARTS_AT_A_TIME)

        async def call(method: str, *arguments: Any) -> Any:
            async with under_way:
                with _stack_errors(self._model_id):
                    answer: Any = getattr(self._handle, method).remote(*arguments)
                    try:
                        return await answer
                    except asyncio.CancelledError:
                        answer.cancel()
                        raise

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(call(*each)) for each in calls]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def describe(self) -> dict[str, Any]:
        with _stack_errors(self._model_id):
            description: dict[str, Any] = await self._handle.describe.remote()
        return description

    async def _stream(self, method: str, request: BaseModel, priority: Priority) -> AsyncGenerator[Any]:
        """Closing this generator cancels the replica's, which frees the slot."""
        with _stack_errors(self._model_id):
            call = getattr(self._handle.options(stream=True), method)
            further = {} if (parent := traceparent()) is None else {"traceparent": parent}
            chunks = call.remote(request, max(priority, self._lowest), *self._adapter, **further)
            try:
                async for chunk in chunks:
                    yield chunk
            finally:
                _cancel(chunks)


def _cancel(chunks: Any) -> None:
    """Cancel a call, also one that was assigned to a replica in the very moment in which its caller went.

    Ray 2.60 then finds the assignment done, so it has nothing to cancel, but has not fetched its result yet,
    and lets the replica compute an answer that nobody waits for.
    """
    fetched = getattr(chunks, "_replica_result", None) is not None
    assignment = getattr(chunks, "_replica_result_future", None)
    chunks.cancel()
    if fetched or assignment is None or not assignment.done() or assignment.cancelled():
        return
    if assignment.exception() is None:
        assignment.result().cancel()


@contextlib.contextmanager
def _stack_errors(model_id: str) -> Generator[None]:
    """Errors of a handle as StackErrors: the replica's own, or that it is gone.

    What the replica raised comes as an error that is one of its class and of Ray's, with the replica's whole
    traceback for a text. Its `cause` is what was raised.
    """
    try:
        yield
    except BackPressureError:
        raise Overloaded(f"model {model_id!r} has too many requests waiting") from None
    except (DeploymentUnavailableError, RayActorError):
        raise NotReady(f"model {model_id!r} has lost its replica, which is being replaced") from None
    except TaskCancelledError:
        raise asyncio.CancelledError from None
    except (StackError, RayError, RayServeException) as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, StackError):
            raise cause from None
        raise
