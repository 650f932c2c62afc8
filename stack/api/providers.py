"""Providers: which implementations of each API there are."""

from __future__ import annotations

from stack.api.routing import api_router
from stack.context import CurrentStack
from stack.errors import NotFound
from stack.providers import PROVIDERS, Provider
from stack.schemas.providers import ListProvidersResponse, ProviderInfo
from stack.settings import Settings

router = api_router("Providers")


@router.get("/v1/providers")
async def list_providers(stack: CurrentStack) -> ListProvidersResponse:
    """All providers, with their configuration; secrets are masked."""
    return ListProvidersResponse(data=[_info(provider, stack.settings) for provider in PROVIDERS])


@router.get("/v1/providers/{provider_id:path}")
async def get_provider(provider_id: str, stack: CurrentStack) -> ProviderInfo:
    """One provider, with its configuration; secrets are masked."""
    for provider in PROVIDERS:
        if provider.provider_id == provider_id:
            return _info(provider, stack.settings)
    raise NotFound("provider", provider_id)


def _info(provider: Provider, settings: Settings) -> ProviderInfo:
    return ProviderInfo(
        api=provider.api,
        provider_id=provider.provider_id,
        provider_type=provider.provider_type,
        config=provider.config(settings),
    )
