"""The only package that imports ray.serve. Its builders are what `deployments/*.yaml` names as `import_path`.

- `api(args)`: an HTTP application with every route of the stack. YAML gives it a route prefix and replicas.
- `model(args)`: one base model, without a route; its replicas are reached through handles.
- `reconciler(args)`: keeps the registered models running.
"""

# No `from __future__ import annotations`: Serve validates `args:` by a builder's annotation as it stands.

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp, Receive, Scope, Send

from stack.models.args import ModelArgs
from stack.models.names import MODEL_DEPLOYMENT
from stack.serve.loopback import bind_loopback

bind_loopback()


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
    from stack.serve.handles import inference, session_name
    from stack.serve.meter import ServeMeter

    return SpecPaths(
        create_app(lambda: open_stack(inference=inference, session=session_name(), meter=ServeMeter()))
    )


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


def model(args: ModelArgs) -> Application:
    """One base model with its replicas; `name` in YAML must be `model-<model_id>`."""
    if args.provider_id == "openai":
        raise ValueError(
            f"model {args.model_id!r}: provider_id openai needs no replica; "
            "list it under remote_models in the reconciler's args"
        )
    if args.provider_id == "transformers" and "base_model" in args.metadata:
        raise ValueError(
            f"model {args.model_id!r}: metadata.base_model makes it a LoRA adapter, which has no "
            "application: register it over HTTP"
        )
    limit = args.max_batch + args.max_queue
    options: dict[str, Any] = {"num_cpus": args.num_cpus, "num_gpus": args.num_gpus}
    deployment = serve.deployment(
        name=MODEL_DEPLOYMENT,
        ray_actor_options=options,
        # The engine itself refuses what is beyond the limit; Serve would let it wait.
        max_ongoing_requests=2 * limit,
        max_queued_requests=limit,
        health_check_period_s=10,
        graceful_shutdown_timeout_s=10,
        autoscaling_config={
            "min_replicas": args.min_replicas,
            "max_replicas": max(args.max_replicas, args.min_replicas),
            "target_ongoing_requests": args.target_ongoing_requests,
        },
    )
    from stack.serve.replicas import Model

    return deployment(Model).bind(args)


def reconciler(args: ReconcilerArgs) -> Application:
    """The reconciler: exactly one replica."""
    deployment = serve.deployment(
        name="Reconciler", num_replicas=1, ray_actor_options={"num_cpus": 0}, health_check_period_s=5
    )
    from stack.serve.replicas import ReconcilerLoop

    return deployment(ReconcilerLoop).bind(args)
