"""SyntheticDataGeneration: answers to dialogs, scored and filtered."""

from __future__ import annotations

from starlette.responses import Response

from stack.api.routing import api_router
from stack.context import CurrentStack
from stack.schemas.synthetic_data import SyntheticDataGenerateRequest, SyntheticDataGenerationResponse

router = api_router("SyntheticDataGeneration")


@router.post("/v1/synthetic-data-generation/generate", response_model=SyntheticDataGenerationResponse)
async def generate(request: SyntheticDataGenerateRequest, stack: CurrentStack) -> Response:
    """Generate several answers to each dialog, score them, and keep those that the filter chooses.

    Above 20 dialogs a job does it: while it works the answer is 503, and the same request again waits for it.
    """
    response = await stack.synthesizer.generate(request)
    return Response(response.model_dump_json(), media_type="application/json")
