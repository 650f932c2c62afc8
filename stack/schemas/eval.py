"""Eval: running a benchmark on a model or an agent."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypeAliasType

from stack.schemas.agents import AgentConfig
from stack.schemas.common import JobStatus, JsonObject, Schema
from stack.schemas.messages import SystemMessage
from stack.schemas.sampling import SamplingParams
from stack.schemas.scoring import ScoringResult
from stack.schemas.scoring_functions import ScoringFnParams


class ModelCandidate(Schema):
    """A model candidate for evaluation."""

    type: Literal["model"] = "model"
    model: str
    sampling_params: SamplingParams
    system_message: SystemMessage | None = None


class AgentCandidate(Schema):
    """An agent candidate for evaluation."""

    type: Literal["agent"] = "agent"
    config: AgentConfig


EvalCandidate = TypeAliasType(
    "EvalCandidate", Annotated[ModelCandidate | AgentCandidate, Field(discriminator="type")]
)


class BenchmarkConfig(Schema):
    """What is evaluated, and how it is scored."""

    eval_candidate: EvalCandidate
    scoring_params: dict[str, ScoringFnParams] = Field(description="Scoring function to parameters")
    num_examples: int | None = Field(None, ge=1, description="Default: all of the dataset")


class RunEvalRequest(Schema):
    benchmark_config: BenchmarkConfig


class EvaluateRowsRequest(Schema):
    input_rows: list[JsonObject]
    scoring_functions: list[str]
    benchmark_config: BenchmarkConfig


class EvaluateResponse(Schema):
    generations: list[JsonObject] = Field(description="One for each row, in the same order")
    scores: dict[str, ScoringResult] = Field(description="Scoring function to result")


class Job(Schema):
    job_id: str
    status: JobStatus
