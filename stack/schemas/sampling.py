"""How the next token is drawn, and what shape the output must have."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypeAliasType

from stack.schemas.common import JsonObject, Schema


class GreedySamplingStrategy(Schema):
    type: Literal["greedy"] = "greedy"


class TopPSamplingStrategy(Schema):
    """Draw from the smallest set of tokens whose probabilities sum to `top_p` (Holtzman et al. 2020)."""

    type: Literal["top_p"] = "top_p"
    temperature: float | None = Field(None, ge=0)
    top_p: float = Field(0.95, ge=0, le=1)


class TopKSamplingStrategy(Schema):
    """Draw from the `top_k` most likely tokens."""

    type: Literal["top_k"] = "top_k"
    top_k: int = Field(ge=1)


SamplingStrategy = TypeAliasType(
    "SamplingStrategy",
    Annotated[
        GreedySamplingStrategy | TopPSamplingStrategy | TopKSamplingStrategy, Field(discriminator="type")
    ],
)


class SamplingParams(Schema):
    """Sampling parameters."""

    strategy: SamplingStrategy
    max_tokens: int = Field(0, ge=0, description="Limit of new tokens; 0: up to the model's context length")
    repetition_penalty: float = Field(
        1.0,
        ge=-2,
        le=2,
        description="Above 1.0, tokens of the text so far become less likely; 1.0 is neutral",
    )
    stop: list[str] | None = Field(
        None,
        max_length=4,
        description="Up to 4 strings that end the generation; they are not part of the text",
    )


class JsonSchemaResponseFormat(Schema):
    """The output is JSON that the schema accepts."""

    type: Literal["json_schema"] = "json_schema"
    json_schema: JsonObject


class GrammarResponseFormat(Schema):
    """The output is a sentence of the grammar."""

    type: Literal["grammar"] = "grammar"
    bnf: JsonObject = Field(description="The grammar")


ResponseFormat = TypeAliasType(
    "ResponseFormat",
    Annotated[JsonSchemaResponseFormat | GrammarResponseFormat, Field(discriminator="type")],
)
