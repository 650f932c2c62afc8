"""Which model applications should run, compared with which do.

The registry is the truth for models that were registered over HTTP, the deployment file for those that it
declares. One `step` brings the cluster nearer to the registry, shows declared models in it, and writes each
model's state.
Every action may be repeated, so a step that was interrupted or ran twice does no harm.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stack.models.adapters import base_of
from stack.models.args import ModelArgs
from stack.models.registration import to_args
from stack.schemas.models import Model
from stack.store.model_status import ModelStatuses, State
from stack.store.registry import Registry

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelApplication:
    """A model application as the cluster shows it. `args` is None when the cluster does not tell."""

    state: State
    detail: str | None
    declared: bool
    args: ModelArgs | None
    replicas: int = 0  # that answer


class Cluster(Protocol):
    """What the reconciler asks of Ray Serve."""

    session: str  # changes when the cluster is restarted: statuses of an earlier one are void

    async def applications(self) -> Mapping[str, ModelApplication]:
        """Model applications by model id."""

    async def deploy(self, args: ModelArgs) -> None: ...

    async def delete(self, model_id: str) -> None: ...

    async def describe(self, model_id: str) -> dict[str, Any]: ...


class Reconciler:
    def __init__(
        self,
        cluster: Cluster,
        models: Registry[Model],
        status: ModelStatuses,
        remote: Sequence[ModelArgs] = (),
    ) -> None:
        self._cluster, self._models, self._status = cluster, models, status
        self._remote = {args.model_id: args for args in remote}
        self._deployed: dict[str, ModelArgs] = {}
        self._described: dict[str, dict[str, Any]] = {}

    async def step(self) -> None:
        applications = await self._cluster.applications()
        declared = self._remote | {
            model_id: application.args
            for model_id, application in applications.items()
            if application.declared and application.args is not None
        }
        await self._show_declared(declared)
        registered = await self._models.list(declared=False)
        # Adapters are served by their base models' replicas, and their states are those of the bases.
        wanted = {model.identifier: to_args(model) for model in registered if base_of(model) is None}
        await self._deploy(wanted, applications)
        await self._delete(wanted, applications)
        await self._write_status({**wanted, **declared}, applications)

    async def _show_declared(self, declared: Mapping[str, ModelArgs]) -> None:
        """Registry rows of the models that the deployment file names, and of none that it no longer names."""
        shown = {model.identifier: model for model in await self._models.list(declared=True)}
        for model_id, args in declared.items():
            model = as_model(args)
            if shown.get(model_id) != model:
                await self._models.declare(model)
        for model_id in shown.keys() - declared.keys():
            log.info("model %s is no longer declared", model_id)
            await self._models.retract(model_id)

    async def _deploy(
        self, wanted: Mapping[str, ModelArgs], applications: Mapping[str, ModelApplication]
    ) -> None:
        for model_id, args in wanted.items():
            if args.provider_id == "openai":
                continue
            application = applications.get(model_id)
            current = application and (application.args or self._deployed.get(model_id))
            if application is None or (current is not None and current != args):
                log.info("deploying model %s", model_id)
                self._described.pop(model_id, None)
                await self._cluster.deploy(args)
                self._deployed[model_id] = args

    async def _delete(
        self, wanted: Mapping[str, ModelArgs], applications: Mapping[str, ModelApplication]
    ) -> None:
        for model_id, application in applications.items():
            unwanted = model_id not in wanted and not application.declared
            if unwanted and application.state != "deleting":
                log.info("deleting the application of model %s", model_id)
                await self._cluster.delete(model_id)
                self._deployed.pop(model_id, None)

    async def _write_status(
        self, served: Mapping[str, ModelArgs], applications: Mapping[str, ModelApplication]
    ) -> None:
        rows = {row.identifier: row for row in await self._status.list()}
        for model_id in rows.keys() - served.keys():
            self._described.pop(model_id, None)
            await self._status.delete(model_id)
        for model_id, args in served.items():
            application = applications.get(model_id)
            state, detail = self._state(args, application)
            description = {"session": self._cluster.session, **await self._describe(model_id, args, state)}
            if application is not None:
                description["replicas"] = application.replicas
            row = rows.get(model_id)
            if row is None or (row.state, row.detail, row.description) != (state, detail, description):
                await self._status.set(model_id, state, detail, description)

    def _state(self, args: ModelArgs, application: ModelApplication | None) -> tuple[State, str | None]:
        if args.provider_id == "openai":
            return "ready", None
        if application is None:
            return "pending", None
        return application.state, application.detail

    async def _describe(self, model_id: str, args: ModelArgs, state: State) -> dict[str, Any]:
        """What a ready replica says of itself, asked once."""
        if state != "ready" or args.provider_id == "openai":
            return self._described.get(model_id, {})
        if model_id not in self._described:
            self._described[model_id] = await self._cluster.describe(model_id)
        return self._described[model_id]


def as_model(args: ModelArgs) -> Model:
    return Model(
        identifier=args.model_id,
        provider_resource_id=args.source,
        provider_id=args.provider_id,
        metadata=args.metadata,
        model_type=args.model_type,
    )
