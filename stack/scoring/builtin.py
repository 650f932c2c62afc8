"""Which scoring functions are there without a registration. One is a file and an entry here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from stack.schemas.scoring_functions import (
    AggregationFunctionType,
    BasicScoringFnParams,
    LLMAsJudgeScoringFnParams,
    NumberType,
    RegexParserScoringFnParams,
    ScoringFn,
)
from stack.scoring.basic import equality, subset_of
from stack.scoring.docvqa import docvqa
from stack.scoring.in_children import ChildScorer
from stack.scoring.regex_parser import CHOICE_PATTERNS, MATH_PATTERNS, RegexParser
from stack.scoring.scorer import PlainScorer, Scorer
from stack.scoring.workers import Workers

Params = LLMAsJudgeScoringFnParams | RegexParserScoringFnParams | BasicScoringFnParams

BASIC, JUDGE = "basic", "llm-as-judge"
PROVIDERS = (BASIC, JUDGE)


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """`patterns` and `aggregations` are those of a call or a registration that has none."""

    description: str
    type: str
    """Of the params that it takes."""
    aggregations: tuple[AggregationFunctionType, ...]
    make: Callable[[Workers, list[str]], Scorer] | None
    """From its workers and its patterns. None: a judge, which also needs a model."""
    patterns: tuple[str, ...] = ()
    direct: int = sys.maxsize
    """Up to so many rows of a dataset are scored while the request waits; a job scores more."""

    @property
    def params(self) -> Params | None:
        """What a listing shows. A judge has none, since only a caller knows which model judges."""
        if self.type == "basic":
            return BasicScoringFnParams(aggregation_functions=[*self.aggregations])
        if self.type == "regex_parser":
            return RegexParserScoringFnParams(
                parsing_regexes=[*self.patterns], aggregation_functions=[*self.aggregations]
            )
        return None


BUILT_IN: dict[str, BuiltIn] = {
    "basic::equality": BuiltIn(
        "1 if the generated answer is the expected one, else 0",
        "basic",
        ("accuracy",),
        lambda workers, patterns: PlainScorer(equality),
    ),
    "basic::subset_of": BuiltIn(
        "1 if the expected answer stands somewhere in the generated one, else 0",
        "basic",
        ("accuracy",),
        lambda workers, patterns: PlainScorer(subset_of),
    ),
    "basic::regex_parser_multiple_choice_answer": BuiltIn(
        "1 if the letter after 'Answer:' (in many languages) is the expected one, else 0",
        "regex_parser",
        ("accuracy",),
        lambda workers, patterns: RegexParser(workers, "stack.scoring.patterns:compare", patterns, 256),
        CHOICE_PATTERNS,
        direct=500_000,
    ),
    "basic::regex_parser_math_response": BuiltIn(
        "1 if the final answer equals the expected one as mathematics, else 0",
        "regex_parser",
        ("accuracy",),
        lambda workers, patterns: RegexParser(workers, "stack.scoring.mathematics:compare", patterns, 16),
        MATH_PATTERNS,
        direct=10_000,
    ),
    "basic::bfcl": BuiltIn(
        "1 if the function calls are those of the ground truth by the rules of BFCL, else 0",
        "basic",
        ("accuracy",),
        lambda workers, patterns: ChildScorer(
            workers, "stack.scoring.bfcl:score", ("generated_answer",),
            ("language", "function", "ground_truth", "test_category", "id"),
        ),
        direct=10_000,
    ),
    "basic::ifeval": BuiltIn(
        "The share of a prompt's verifiable instructions that the answer follows, as in IFEval",
        "basic",
        ("weighted_average",),
        lambda workers, patterns: ChildScorer(
            workers, "stack.scoring.ifeval:score", ("generated_answer", "instruction_id_list", "kwargs"), ()
        ),
        direct=10_000,
    ),
    "basic::docvqa": BuiltIn(
        "1 if the answer is one of the expected ones but for case, articles and punctuation, else 0",
        "basic",
        ("accuracy",),
        lambda workers, patterns: PlainScorer(docvqa),
    ),
    "llm-as-judge::base": BuiltIn(
        "What a model gives the answer, by a prompt and by patterns that find the score in its words",
        "llm_as_judge",
        (),
        None,
        direct=200,
    ),
}  # fmt: skip


def resource_id(identifier: str) -> str:
    """The name that a provider knows a built-in function by: basic::subset_of -> subset-of."""
    provider, _, name = identifier.partition("::")
    return f"{provider}-{name}" if provider == JUDGE else name.replace("_", "-")


RESOURCES = {resource_id(identifier): identifier for identifier in BUILT_IN}

LISTED = {
    identifier: ScoringFn(
        identifier=identifier,
        provider_resource_id=resource_id(identifier),
        provider_id=identifier.partition("::")[0],
        description=built_in.description,
        metadata={},
        return_type=NumberType(),
        params=built_in.params,
    )
    for identifier, built_in in BUILT_IN.items()
}


def built_in_named(name: str) -> str | None:
    """The identifier of the function that the name means, with or without its provider."""
    for provider in PROVIDERS:
        name = name.removeprefix("inline::").removeprefix(f"{provider}::")
    name = name.replace("_", "-")
    return RESOURCES.get(name) or (RESOURCES["llm-as-judge-base"] if name == "base" else None)
