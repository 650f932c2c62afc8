"""Scoring: rows in, a score for each row and aggregates out."""

from pydantic import Field

from stack.schemas.common import JsonObject, Schema
from stack.schemas.scoring_functions import ScoringFnParams


class ScoringResult(Schema):
    """What one scoring function says."""

    score_rows: list[JsonObject] = Field(description="One for each row, in the same order")
    aggregated_results: JsonObject = Field(description="Metric name to aggregated value")


class ScoreRequest(Schema):
    input_rows: list[JsonObject]
    scoring_functions: dict[str, ScoringFnParams | None] = Field(
        description="Scoring function to parameters; null for the function's own"
    )


class ScoreResponse(Schema):
    results: dict[str, ScoringResult] = Field(description="Scoring function to result")


class ScoreBatchRequest(Schema):
    dataset_id: str
    scoring_functions: dict[str, ScoringFnParams | None] = Field(
        description="Scoring function to parameters; null for the function's own"
    )
    save_results_dataset: bool


class ScoreBatchResponse(Schema):
    dataset_id: str | None = Field(None, description="Where the results were saved")
    results: dict[str, ScoringResult]
