"""Scoring functions: the registry of ways to score an answer, and their parameters."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypeAliasType

from stack.schemas.common import Identifier, JsonObject, Schema


class StringType(Schema):
    type: Literal["string"] = "string"


class NumberType(Schema):
    type: Literal["number"] = "number"


class BooleanType(Schema):
    type: Literal["boolean"] = "boolean"


class ArrayType(Schema):
    type: Literal["array"] = "array"


class ObjectType(Schema):
    type: Literal["object"] = "object"


class JsonType(Schema):
    type: Literal["json"] = "json"


class UnionType(Schema):
    type: Literal["union"] = "union"


class ChatCompletionInputType(Schema):
    type: Literal["chat_completion_input"] = "chat_completion_input"


class CompletionInputType(Schema):
    type: Literal["completion_input"] = "completion_input"


class AgentTurnInputType(Schema):
    type: Literal["agent_turn_input"] = "agent_turn_input"


ParamType = TypeAliasType(
    "ParamType",
    Annotated[
        StringType
        | NumberType
        | BooleanType
        | ArrayType
        | ObjectType
        | JsonType
        | UnionType
        | ChatCompletionInputType
        | CompletionInputType
        | AgentTurnInputType,
        Field(discriminator="type"),
    ],
)

AggregationFunctionType = TypeAliasType(
    "AggregationFunctionType",
    Literal["average", "weighted_average", "median", "categorical_count", "accuracy"],
)


class LLMAsJudgeScoringFnParams(Schema):
    """A model reads the prompt and writes a judgement; the first regex that matches it finds the score."""

    type: Literal["llm_as_judge"] = "llm_as_judge"
    judge_model: str
    prompt_template: str | None = None
    judge_score_regexes: list[str] | None = None
    aggregation_functions: list[AggregationFunctionType] | None = None


class RegexParserScoringFnParams(Schema):
    """The first regex that matches finds the answer, which is then compared."""

    type: Literal["regex_parser"] = "regex_parser"
    parsing_regexes: list[str] | None = None
    aggregation_functions: list[AggregationFunctionType] | None = None


class BasicScoringFnParams(Schema):
    type: Literal["basic"] = "basic"
    aggregation_functions: list[AggregationFunctionType] | None = None


ScoringFnParams = TypeAliasType(
    "ScoringFnParams",
    Annotated[
        LLMAsJudgeScoringFnParams | RegexParserScoringFnParams | BasicScoringFnParams,
        Field(discriminator="type"),
    ],
)


class ScoringFn(Schema):
    identifier: str
    provider_resource_id: str
    provider_id: str
    type: Literal["scoring_function"] = "scoring_function"
    description: str | None = None
    metadata: JsonObject
    return_type: ParamType
    params: ScoringFnParams | None = None


class RegisterScoringFunctionRequest(Schema):
    scoring_fn_id: Identifier
    description: str
    return_type: ParamType
    provider_scoring_fn_id: str | None = None
    provider_id: str | None = None
    params: ScoringFnParams | None = None


class ListScoringFunctionsResponse(Schema):
    data: list[ScoringFn]
