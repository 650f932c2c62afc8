"""Shields: the registered checks on what goes into and comes out of models, and running them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stack.models.serving import Serving
from stack.schemas.common import JsonObject
from stack.schemas.messages import Message
from stack.schemas.safety import SafetyViolation
from stack.schemas.shields import RegisterShieldRequest, Shield
from stack.settings import Settings
from stack.store.database import Database


class Shields:
    def __init__(self, settings: Settings, database: Database, serving: Serving) -> None: ...

    async def list(self) -> list[Shield]:
        raise NotImplementedError

    async def get(self, shield_id: str) -> Shield:
        """Raises NotFound."""
        raise NotImplementedError

    async def register(self, request: RegisterShieldRequest) -> Shield:
        """Raises BadRequest for params that the provider does not take, or a model that is not there."""
        raise NotImplementedError

    async def check(self, shield_ids: Iterable[str]) -> None:
        """Raises BadRequest for the first one that is not registered."""
        raise NotImplementedError

    async def run(
        self,
        shield_id: str,
        messages: Sequence[Message],
        params: JsonObject,
        provider_data: Mapping[str, Any] | None = None,
    ) -> SafetyViolation | None:
        """None: nothing was found. A shield that cannot run raises a StackError, never passes silently.

        The violation's metadata has `shield_id`. Raises NotFound for an unknown shield.
        """
        raise NotImplementedError
