"""Tool groups: the built-in ones, and those that callers registered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select

from stack.errors import BadRequest, NotFound
from stack.schemas.tools import RegisterToolGroupRequest, ToolGroup
from stack.store.database import Database
from stack.store.registry import Registry
from stack.store.tables import resources
from stack.tools.base import ToolProvider
from stack.tools.mcp.provider import PROVIDER_ID as MCP
from stack.tools.mcp.provider import Mcp
from stack.tools.search.provider import WebSearch, default_vendor

BUILTIN = {
    "builtin::rag": "rag",
    "builtin::websearch": "websearch",
    "builtin::wolfram_alpha": "wolfram_alpha",
    "builtin::code_interpreter": "code_interpreter",
}
"""The groups that are always there, and the kind of provider that answers for each."""


class Groups:
    """A row under a built-in id goes before the built-in group."""

    def __init__(self, database: Database, providers: Mapping[str, ToolProvider]) -> None:
        self._database, self.providers = database, providers
        self._registry = Registry(database, ToolGroup)
        self._searches = [provider for provider in providers.values() if isinstance(provider, WebSearch)]

    async def all(self, provider_data: Mapping[str, Any]) -> list[ToolGroup]:
        """The built-in ones, then the others in the order of their registration."""
        query = select(resources.c.body).where(resources.c.type == self._registry.kind)
        query = query.order_by(resources.c.created_at, resources.c.identifier)
        bodies = await self._database.query(lambda connection: connection.scalars(query).all())
        rows = {group.identifier: group for group in map(ToolGroup.model_validate_json, bodies)}
        builtin = {
            identifier: rows.get(identifier) or self._default(identifier, provider_data)
            for identifier in BUILTIN
        }
        return list((builtin | rows).values())

    async def get(self, identifier: str, provider_data: Mapping[str, Any]) -> ToolGroup:
        """Raises NotFound."""
        try:
            return await self._registry.get(identifier)
        except NotFound:
            if identifier not in BUILTIN:
                raise
            return self._default(identifier, provider_data)

    async def register(
        self, request: RegisterToolGroupRequest, provider_data: Mapping[str, Any]
    ) -> ToolGroup:
        """Raises BadRequest; for an MCP server also when it cannot be reached."""
        provider = self._provider(request)
        provider.check_args(request.args or {})
        if isinstance(provider, Mcp):
            if request.mcp_endpoint is None:
                raise BadRequest(
                    f'a group of {MCP} needs its server: "mcp_endpoint": {{"uri": "https://…/mcp"}}'
                )
            await provider.connect(request.mcp_endpoint.uri, provider_data)
        elif request.mcp_endpoint is not None:
            raise BadRequest(
                f'mcp_endpoint is for MCP servers: write "provider_id": "{MCP}", or leave it out'
            )
        group = ToolGroup(
            identifier=request.toolgroup_id,
            provider_resource_id=request.toolgroup_id,
            provider_id=request.provider_id,
            mcp_endpoint=request.mcp_endpoint,
            args=request.args,
        )
        return await self._registry.register(group)

    async def unregister(self, identifier: str) -> None:
        try:
            await self._registry.delete(identifier)
        except NotFound:
            if identifier in BUILTIN:
                raise BadRequest(f"tool group {identifier!r} is always there and cannot be removed") from None
            raise

    def provider_of(self, group: ToolGroup) -> ToolProvider:
        """Raises BadRequest for a row of a provider that another version of the server had."""
        provider = self.providers.get(group.provider_id)
        if provider is None:
            raise BadRequest(f"tool group {group.identifier!r}: there is no provider {group.provider_id!r}")
        return provider

    def _provider(self, request: RegisterToolGroupRequest) -> ToolProvider:
        provider = self.providers.get(request.provider_id)
        kind = BUILTIN.get(request.toolgroup_id)
        if provider is None:
            raise BadRequest(
                f"there is no provider {request.provider_id[:100]!r}; there are: {', '.join(self.providers)}"
            )
        if kind is not None and provider.kind != kind:
            fitting = _ids(self.providers, kind)
            raise BadRequest(
                f"tool group {request.toolgroup_id!r} is of provider {' or '.join(fitting)}, "
                f"not {request.provider_id}: choose another toolgroup_id"
            )
        return provider

    def _default(self, identifier: str, provider_data: Mapping[str, Any]) -> ToolGroup:
        kind = BUILTIN[identifier]
        if kind == "websearch":
            provider_id = default_vendor(self._searches, provider_data).vendor.provider_id
        else:
            (provider_id,) = _ids(self.providers, kind)
        return ToolGroup(identifier=identifier, provider_resource_id=identifier, provider_id=provider_id)


def _ids(providers: Mapping[str, ToolProvider], kind: str) -> Sequence[str]:
    return [provider_id for provider_id, provider in providers.items() if provider.kind == kind]
