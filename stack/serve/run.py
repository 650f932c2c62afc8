"""What `serve run FILE` does, in parts: for `stack up`, which says more while it happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve._private import api
from ray.serve.config import gRPCOptions
from ray.serve.schema import ServeDeploySchema

__all__ = ["ApplicationState", "ServeDeploySchema", "deploy", "shutdown", "states"]


@dataclass(frozen=True, slots=True)
class ApplicationState:
    """What Serve says of one application: RUNNING, DEPLOY_FAILED, …"""

    status: str
    reason: str  # why it failed, without the traceback; else empty


def deploy(config: dict[str, Any]) -> None:
    """Start Serve on the connected cluster, and hand it the config; returns before the applications run."""
    schema = ServeDeploySchema.model_validate(config)
    client = api.serve_start(
        http_options=schema.http_options.model_dump(),
        proxy_location=schema.proxy_location,
        grpc_options=gRPCOptions(**schema.grpc_options.model_dump()),
        controller_options=schema.controller_options,
    )
    client.deploy_apps(schema, _blocking=False)


def states() -> dict[str, ApplicationState]:
    """Serve's applications by name."""
    return {
        name: ApplicationState(
            application.status.value,
            next(
                (
                    _last_error(deployment.message)
                    for deployment in application.deployments.values()
                    if deployment.status.value == "DEPLOY_FAILED"
                ),
                _last_error(application.message),
            ),
        )
        for name, application in serve.status().applications.items()
    }


def _last_error(message: str) -> str:
    """What stands below the last frame of a traceback; a message without one as it is."""
    lines = message.strip().splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith(" ")]
    return "\n".join(lines[frames[-1] + 1 :] if frames else lines).strip()


def shutdown() -> None:
    """End Serve on the connected cluster: replicas finish the requests that they have."""
    serve.shutdown()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
