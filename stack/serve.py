"""The only module that imports ray.serve: what `deployments/*.yaml` names as `import_path`.

- `api(args)`: an HTTP application with every route of the stack. YAML gives it a route prefix and replicas.
- `model(args)`: one base model, without a route; its replicas are reached through handles.
- `reconciler(args)`: keeps the registered models running.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayActorError, RayError, TaskCancelledError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from stack.errors import NotReady, Overloaded, StackError
from stack.models.args import ModelArgs
from stack.models.names import MODEL_DEPLOYMENT, app_name

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from stack.engine.base import Inference
    from stack.schemas.inference import (
        ChatCompletionRequest,
        ChatCompletionResponseStreamChunk,
        CompletionRequest,
        CompletionResponseStreamChunk,
        EmbeddingsRequest,
        EmbeddingsResponse,
    )

log = logging.getLogger(__name__)
T = TypeVar("T")


class ApiArgs(BaseModel):
    """`args:` of an API application in YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_cpus: float = Field(0.2, ge=0, description="CPUs that Ray sets aside for a replica.")
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    target_ongoing_requests: float = Field(64.0, gt=0, description="Autoscaling's aim per replica.")


class ReconcilerArgs(BaseModel):
    """`args:` of the reconciler in YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    interval_s: float = Field(1.0, gt=0)
    remote_models: list[ModelArgs] = Field(
        default_factory=list, description="Models behind OpenAI-compatible endpoints, which need no replica."
    )


class SpecPaths:
    """An ASGI shell: Serve puts the route prefix into root_path, but our routes spell the whole path.

    It also keeps Serve from finding `add_exception_handler` and installing its own plain-text errors.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            scope = {**scope, "root_path": ""}
        await self.app(scope, receive, send)


def _build_asgi() -> SpecPaths:
    from stack.app import create_app
    from stack.context import open_stack

    return SpecPaths(create_app(lambda: open_stack(inference=ReplicaInference)))


def api(args: ApiArgs) -> Application:
    """The HTTP API: every router, whatever the route prefix."""
    deployment = serve.deployment(
        name="Api",
        ray_actor_options={"num_cpus": args.num_cpus},
        max_ongoing_requests=10_000,
        autoscaling_config={
            "min_replicas": args.min_replicas,
            "max_replicas": args.max_replicas,
            "target_ongoing_requests": args.target_ongoing_requests,
        },
    )
    return deployment(serve.ingress(_build_asgi)(_Api)).bind()


class _Api:
    """Holds the ASGI application in a replica."""


class Model:
    """A replica of one model."""

    def __init__(self, args: ModelArgs) -> None:
        from stack.engine.open import open_model
        from stack.logs import configure_logging
        from stack.settings import get_settings

        configure_logging(get_settings().log_level)
        self._inference: Inference = open_model(args, get_settings(), ServeMeter(args.model_id))

    async def completion(self, request: CompletionRequest) -> AsyncGenerator[CompletionResponseStreamChunk]:
        async with contextlib.aclosing(_generator(self._inference.completion(request))) as chunks:
            async for chunk in chunks:
                yield chunk

    async def chat_completion(
        self, request: ChatCompletionRequest
    ) -> AsyncGenerator[ChatCompletionResponseStreamChunk]:
        async with contextlib.aclosing(_generator(self._inference.chat_completion(request))) as chunks:
            async for chunk in chunks:
                yield chunk

    async def embeddings(self, request: EmbeddingsRequest) -> EmbeddingsResponse:
        return await self._inference.embeddings(request)

    async def describe(self) -> dict[str, Any]:
        return await self._inference.describe()


def _generator(stream: AsyncIterator[T]) -> AsyncGenerator[T]:
    """The engines' streams are generators; Inference only promises an iterator."""
    assert isinstance(stream, AsyncGenerator)
    return stream


def model(args: ModelArgs) -> Application:
    """One base model with its replicas; `name` in YAML must be `model-<model_id>`."""
    if args.provider_id == "openai":
        raise ValueError(
            f"model {args.model_id!r}: provider_id openai needs no replica; "
            "list it under remote_models in the reconciler's args"
        )
    limit = args.max_batch + args.max_queue
    threads = str(max(1, int(args.num_cpus)))
    options: dict[str, Any] = {
        "num_cpus": args.num_cpus,
        "num_gpus": args.num_gpus,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": threads}},
    }
    deployment = serve.deployment(
        name=MODEL_DEPLOYMENT,
        ray_actor_options=options,
        max_ongoing_requests=max(1, limit),
        max_queued_requests=max(1, limit),
        health_check_period_s=10,
        graceful_shutdown_timeout_s=10,
        autoscaling_config={
            "min_replicas": args.min_replicas,
            "max_replicas": max(args.max_replicas, args.min_replicas),
            "target_ongoing_requests": args.target_ongoing_requests,
        },
    )
    return deployment(Model).bind(args)


class ReplicaInference:
    """`Inference` of a model that runs in replicas, over a Serve handle."""

    def __init__(self, model_id: str) -> None:
        self._model_id = model_id
        self._handle: DeploymentHandle[Any] = serve.get_deployment_handle(
            MODEL_DEPLOYMENT, app_name=app_name(model_id)
        )

    def completion(self, request: CompletionRequest) -> AsyncIterator[CompletionResponseStreamChunk]:
        return self._stream("completion", request)

    def chat_completion(
        self, request: ChatCompletionRequest
    ) -> AsyncIterator[ChatCompletionResponseStreamChunk]:
        return self._stream("chat_completion", request)

    async def embeddings(self, request: EmbeddingsRequest) -> EmbeddingsResponse:
        with _stack_errors(self._model_id):
            response: EmbeddingsResponse = await self._handle.embeddings.remote(request)
        return response

    async def describe(self) -> dict[str, Any]:
        with _stack_errors(self._model_id):
            description: dict[str, Any] = await self._handle.describe.remote()
        return description

    async def _stream(self, method: str, request: BaseModel) -> AsyncGenerator[Any]:
        """Closing this generator cancels the replica's, which frees the slot."""
        with _stack_errors(self._model_id):
            chunks = getattr(self._handle.options(stream=True), method).remote(request)
            try:
                async for chunk in chunks:
                    yield chunk
            finally:
                chunks.cancel()


@contextlib.contextmanager
def _stack_errors(model_id: str) -> Any:
    """Errors of a handle as StackErrors: the replica's own, or what is known of a replica that is not there."""
    try:
        yield
    except StackError:
        raise
    except BackPressureError:
        raise Overloaded(f"model {model_id!r} has too many requests waiting") from None
    except (DeploymentUnavailableError, RayActorError):
        raise NotReady(f"model {model_id!r} has lost its replica, which is being replaced") from None
    except TaskCancelledError:
        raise asyncio.CancelledError from None
    except (RayError, RayServeException) as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, StackError):
            raise cause from None
        raise


class ServeMeter:
    """A `Meter` on Ray's metrics: Prometheus reads them from Ray's agent."""

    def __init__(self, model_id: str) -> None:
        self._model_id = model_id
        self._metrics: dict[str, Any] = {}

    def count(self, name: str, value: float = 1.0) -> None:
        from ray.serve import metrics

        self._get(name, metrics.Counter).inc(value)

    def gauge(self, name: str, value: float) -> None:
        from ray.serve import metrics

        self._get(name, metrics.Gauge).set(value)

    def observe(self, name: str, value: float) -> None:
        from ray.serve import metrics

        self._get(name, metrics.Histogram, boundaries=_BOUNDARIES).observe(value)

    def _get(self, name: str, kind: Any, **options: Any) -> Any:
        if name not in self._metrics:
            metric = kind(name, description=name, tag_keys=("model_id",), **options)
            metric.set_default_tags({"model_id": self._model_id})
            self._metrics[name] = metric
        return self._metrics[name]


_BOUNDARIES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
