"""Models: the registry of models that the server can serve."""

from typing import Literal

from typing_extensions import TypeAliasType

from stack.schemas.common import Identifier, JsonObject, Schema

ModelType = TypeAliasType("ModelType", Literal["llm", "embedding"])


class Model(Schema):
    identifier: str
    provider_resource_id: str
    provider_id: str
    type: Literal["model"] = "model"
    metadata: JsonObject
    model_type: ModelType = "llm"


class RegisterModelRequest(Schema):
    model_id: Identifier
    provider_model_id: str | None = None
    provider_id: str | None = None
    metadata: JsonObject | None = None
    model_type: ModelType | None = None


class ListModelsResponse(Schema):
    data: list[Model]
