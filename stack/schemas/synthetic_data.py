"""Synthetic data generation."""

from typing import Literal

from typing_extensions import TypeAliasType

from stack.schemas.common import JsonObject, Schema
from stack.schemas.messages import Message

FilteringFunction = TypeAliasType(
    "FilteringFunction", Literal["none", "random", "top_k", "top_p", "top_k_top_p", "sigmoid"]
)


class SyntheticDataGenerateRequest(Schema):
    dialogs: list[Message]
    filtering_function: FilteringFunction
    model: str | None = None


class SyntheticDataGenerationResponse(Schema):
    """Batch of (prompt, response, score) tuples that pass the threshold."""

    synthetic_data: list[JsonObject]
    statistics: JsonObject | None = None
