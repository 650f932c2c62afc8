"""Safety: run a shield over messages."""

from __future__ import annotations

from stack.api.routing import api_router
from stack.context import CurrentStack, ProviderData
from stack.schemas.safety import RunShieldRequest, RunShieldResponse

router = api_router("Safety")


@router.post("/v1/safety/run-shield")
async def run_shield(
    request: RunShieldRequest, stack: CurrentStack, provider_data: ProviderData
) -> RunShieldResponse:
    """Run a shield. `violation` is absent when it found nothing; a shield that cannot run is an error.

    `params` go before those that the shield was registered with, for this call.
    """
    violation = await stack.shields.run(request.shield_id, request.messages, request.params, provider_data)
    return RunShieldResponse(violation=violation)
