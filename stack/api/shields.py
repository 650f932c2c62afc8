"""Shields: register, list and get the checks on what goes into and comes out of models."""

from __future__ import annotations

from stack.api.routing import api_router
from stack.context import CurrentStack
from stack.schemas.shields import ListShieldsResponse, RegisterShieldRequest, Shield

router = api_router("Shields")


@router.get("/v1/shields")
async def list_shields(stack: CurrentStack) -> ListShieldsResponse:
    """All shields, also those that are there without a registration: pii and code-scanner."""
    return ListShieldsResponse(data=await stack.shields.list())


@router.post("/v1/shields")
async def register_shield(request: RegisterShieldRequest, stack: CurrentStack) -> Shield:
    """Register a shield. `provider_shield_id` names the model that llama-guard and prompt-guard ask."""
    return await stack.shields.register(request)


@router.get("/v1/shields/{identifier:path}")
async def get_shield(identifier: str, stack: CurrentStack) -> Shield:
    """Get a shield."""
    return await stack.shields.get(identifier)
