"""The reconciler's view of Ray Serve: model applications, their states, deploy and delete."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.api import _run
from ray.serve.context import _get_global_client
from ray.serve.schema import APIType

from stack.models.args import ModelArgs
from stack.models.names import app_name, model_of
from stack.models.reconciler import ModelApplication
from stack.serve.handles import ReplicaInference, session_name

if TYPE_CHECKING:
    from stack.store.model_status import State

_STATES: dict[str, State] = {
    "NOT_STARTED": "pending",
    "DEPLOYING": "loading",
    "RUNNING": "ready",
    "DEPLOY_FAILED": "failed",
    "UNHEALTHY": "loading",  # Serve replaces the replica
    "DELETING": "deleting",
}


class ServeCluster:
    """The reconciler's `Cluster` on Ray Serve. Calls to the controller block, so each runs in a thread."""

    def __init__(self) -> None:
        self.session = session_name()

    async def applications(self) -> dict[str, ModelApplication]:
        details = await asyncio.to_thread(self._details)
        found = {}
        for name, application in details["applications"].items():
            model_id = model_of(name)
            if model_id is None:
                continue
            declared = application["source"] == APIType.DECLARATIVE
            config = application.get("deployed_app_config") or {}
            state = _STATES[application["status"]]
            found[model_id] = ModelApplication(
                state=state,
                detail=_reason(application) if state == "failed" else None,
                declared=declared,
                replicas=_running(application),
                args=ModelArgs.model_validate(config["args"]) if declared else None,
            )
        return found

    @staticmethod
    def _details() -> dict[str, Any]:
        client = _get_global_client()
        assert client is not None
        details: dict[str, Any] = client.get_serve_details()
        return details

    async def deploy(self, args: ModelArgs) -> None:
        from stack.serve import model

        await asyncio.to_thread(
            _run, model(args), name=app_name(args.model_id), route_prefix=None, _blocking=False
        )

    async def delete(self, model_id: str) -> None:
        await asyncio.to_thread(serve.delete, app_name(model_id), _blocking=False)

    async def describe(self, model_id: str) -> dict[str, Any]:
        return await ReplicaInference(model_id).describe()


def _running(application: dict[str, Any]) -> int:
    replicas = [each for deployment in application["deployments"].values() for each in deployment["replicas"]]
    return sum(replica["state"] == "RUNNING" for replica in replicas)


def _reason(application: dict[str, Any]) -> str:
    """Why an application failed, in one line: the replica's own error without its traceback."""
    deployments = application["deployments"].values()
    messages: list[str] = [application["message"], *(deployment["message"] for deployment in deployments)]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("stack.errors.")]
    if own:
        _, _, reason = own[-1].partition(": ")
        return reason or own[-1]
    return "the replica could not start; see the server's log"
