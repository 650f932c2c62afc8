"""Shields: the registered checks on what goes into and comes out of models, and running them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from stack.errors import BadRequest, NotFound
from stack.models.serving import Serving
from stack.safety.provider import Call, ShieldProvider, parse_params
from stack.safety.providers import BUILT_IN, PROVIDERS
from stack.safety.scans import Scans
from stack.schemas.common import JsonObject
from stack.schemas.messages import Message
from stack.schemas.safety import SafetyViolation
from stack.schemas.shields import RegisterShieldRequest, Shield
from stack.settings import Settings
from stack.store.database import Database
from stack.store.registry import Registry
from stack.tracing import span

_BUILT_IN = {name: Shield(identifier=name, provider_resource_id=name, provider_id=name) for name in BUILT_IN}


class Shields:
    def __init__(self, settings: Settings, database: Database, serving: Serving) -> None:
        self._registry = Registry(database, Shield)
        self._scans = Scans()
        self._providers = {name: provider(serving, self._scans) for name, provider in PROVIDERS.items()}

    async def list(self) -> list[Shield]:
        registered = {shield.identifier: shield for shield in await self._registry.list()}
        return sorted((_BUILT_IN | registered).values(), key=lambda shield: shield.identifier)

    async def get(self, shield_id: str) -> Shield:
        """Raises NotFound."""
        try:
            return await self._registry.get(shield_id)
        except NotFound:
            if shield_id in _BUILT_IN:
                return _BUILT_IN[shield_id]
            raise

    async def register(self, request: RegisterShieldRequest) -> Shield:
        """Raises BadRequest for params that the provider does not take, or a model that is not there."""
        provider_id = request.provider_id or _provider_named(request)
        shield = Shield(
            identifier=request.shield_id,
            provider_resource_id=request.provider_shield_id or request.shield_id,
            provider_id=provider_id,
            params=request.params,
        )
        provider = self._provider(shield)
        await provider.check(shield, parse_params(provider.params, request.params))
        return await self._registry.register(shield)

    async def check(self, shield_ids: Iterable[str]) -> None:
        """Raises BadRequest for the first one that is not registered."""
        for shield_id in shield_ids:
            try:
                await self.get(shield_id)
            except NotFound as error:
                raise BadRequest(f"{error}; GET /v1/shields names those that are") from None

    async def run(
        self,
        shield_id: str,
        messages: Sequence[Message],
        params: JsonObject,
        provider_data: Mapping[str, Any] | None = None,
    ) -> SafetyViolation | None:
        """None: nothing was found. A shield that cannot run raises a StackError, never passes silently.

        `params` go before those that the shield was registered with. The violation's metadata has
        `shield_id`. Raises NotFound for an unknown shield.
        """
        shield = await self.get(shield_id)
        if not messages:
            raise BadRequest("messages is empty: give the shield at least one message to read")
        provider = self._provider(shield)
        given: JsonObject = {key: value for key, value in params.items() if value is not None}
        merged = parse_params(provider.params, (shield.params or {}) | given)
        with span(f"shield {shield_id}", {"stack.shield_id": shield_id}) as current:
            found = await provider.run(Call(shield, merged, messages, provider_data or {}))
            current.set_attribute("stack.violation", found is not None)
        if found is None:
            return None
        return found.model_copy(update={"metadata": found.metadata | {"shield_id": shield_id}})

    def close(self) -> None:
        """End the processes that read hostile text."""
        self._scans.close()

    def _provider(self, shield: Shield) -> ShieldProvider[Any]:
        if shield.provider_id not in self._providers:
            raise _unknown_provider(f"there is no shield provider {shield.provider_id!r}")
        return self._providers[shield.provider_id]


def _provider_named(request: RegisterShieldRequest) -> str:
    """The provider in the name of the shield or of its model, such as meta-llama/Llama-Guard-3-8B."""
    for name in (request.shield_id, request.provider_shield_id or ""):
        words = name.lower().replace("_", "-")
        named = [p for p in PROVIDERS if re.search(rf"(?<![a-z]){p}(?![a-z])", words)]
        if len(named) == 1:
            return named[0]
    raise _unknown_provider(f"the shield {request.shield_id!r} does not say what checks it: set provider_id")


def _unknown_provider(problem: str) -> BadRequest:
    return BadRequest(f"{problem}; providers are {', '.join(PROVIDERS)}")


@asynccontextmanager
async def open_shields(settings: Settings, database: Database, serving: Serving) -> AsyncGenerator[Shields]:
    shields = Shields(settings, database, serving)
    try:
        yield shields
    finally:
        await asyncio.to_thread(shields.close)
