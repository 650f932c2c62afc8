"""ScoringFunctions: register, list and get the ways to score an answer."""

from __future__ import annotations

from stack.api.routing import api_router
from stack.context import CurrentStack
from stack.schemas.scoring_functions import (
    ListScoringFunctionsResponse,
    RegisterScoringFunctionRequest,
    ScoringFn,
)

router = api_router("ScoringFunctions")


@router.get("/v1/scoring-functions")
async def list_scoring_functions(stack: CurrentStack) -> ListScoringFunctionsResponse:
    """All scoring functions, those that are there without a registration included."""
    return ListScoringFunctionsResponse(data=await stack.scoring.functions.list())


@router.post("/v1/scoring-functions")
async def register_scoring_function(request: RegisterScoringFunctionRequest, stack: CurrentStack) -> None:
    """Register a scoring function. `provider_scoring_fn_id` names the built-in one that computes it.

    A judge is registered with params of type `llm_as_judge`: its model, its prompt, and patterns that find
    the score in what it writes.
    """
    await stack.scoring.functions.register(request)


@router.get("/v1/scoring-functions/{scoring_fn_id:path}")
async def get_scoring_function(scoring_fn_id: str, stack: CurrentStack) -> ScoringFn:
    """Get a scoring function."""
    return await stack.scoring.functions.get(scoring_fn_id)
