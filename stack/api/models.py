"""Models: register, list, get and delete what inference can be asked of."""

from __future__ import annotations

from stack.api.routing import api_router
from stack.context import CurrentStack, Models, Statuses
from stack.models import adapters
from stack.models.registration import check
from stack.schemas.models import ListModelsResponse, Model, RegisterModelRequest
from stack.store.model_status import ModelStatus

router = api_router("Models")


@router.get("/v1/models")
async def list_models(statuses: Statuses) -> ListModelsResponse:
    """All models. Their metadata shows `status`: pending, loading, ready, failed (with `status_detail`)."""
    return ListModelsResponse(data=[_shown(*found) for found in await adapters.find_all(statuses)])


@router.post("/v1/models")
async def register_model(request: RegisterModelRequest, stack: CurrentStack) -> Model:
    """Register a model. The answer comes once its source is checked; `status` tells when it is served.

    With `metadata.base_model` it is a LoRA adapter of that model, whose replicas serve it at once.
    """
    model = await stack.models.register(await check(request, stack.settings, stack.model_status))
    return _shown(*await adapters.find(stack.model_status, model.identifier))


@router.get("/v1/models/{model_id:path}")
async def get_model(model_id: str, statuses: Statuses) -> Model:
    """Get a registered model."""
    return _shown(*await adapters.find(statuses, model_id))


@router.delete("/v1/models/{model_id:path}")
async def delete_model(model_id: str, models: Models, statuses: Statuses) -> None:
    """Unregister a model and free its replicas. One that stack.yaml declares is removed there, and the base
    of adapters goes after them."""
    await adapters.refuse_with_adapters(models, model_id)
    await models.delete(model_id)
    await statuses.delete(model_id)  # registered again, it starts anew


def _shown(model: Model, status: ModelStatus | None) -> Model:
    """The model with what its replicas told, and how far serving it has come, in its metadata."""
    metadata = dict(model.metadata)
    if status is not None:
        metadata |= {key: value for key, value in status.description.items() if key != "session"}
    # A remote endpoint is served as soon as it is known.
    starting = "ready" if model.provider_id == "openai" else "pending"
    metadata["status"] = starting if status is None else status.state
    if status is not None and status.detail:
        metadata["status_detail"] = status.detail
    return model.model_copy(update={"metadata": metadata})
