"""Scoring functions: those that are built in, those that callers register, and what both are made into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stack.engine.base import Priority
from stack.errors import BadRequest, NotFound
from stack.models.serving import Serving
from stack.schemas.scoring_functions import (
    AggregationFunctionType,
    LLMAsJudgeScoringFnParams,
    RegexParserScoringFnParams,
    RegisterScoringFunctionRequest,
    ScoringFn,
)
from stack.scoring.builtin import (
    BASIC,
    BUILT_IN,
    JUDGE,
    LISTED,
    PROVIDERS,
    Params,
    built_in_named,
    resource_id,
)
from stack.scoring.judge import DEFAULT_PATTERNS, DEFAULT_TEMPLATE, MAX_TEMPLATE_CHARS, Judge
from stack.scoring.reward import Reward
from stack.scoring.scorer import Scorer
from stack.scoring.template import Template
from stack.scoring.workers import Workers
from stack.store.database import Database
from stack.store.registry import Registry


@dataclass(frozen=True, slots=True)
class Plan:
    """A scoring function with all its parameters: what `open` makes a Scorer of, in any process."""

    scoring_fn_id: str
    built_in: str
    aggregations: tuple[AggregationFunctionType, ...]
    patterns: tuple[str, ...] = ()
    judge_model: str = ""
    template: str = ""
    as_text: bool = False


class ScoringFunctions:
    def __init__(self, database: Database, serving: Serving, workers: Workers) -> None:
        self._registry = Registry(database, ScoringFn)
        self._serving, self._workers = serving, workers

    async def list(self) -> list[ScoringFn]:
        registered = {function.identifier: function for function in await self._registry.list()}
        return sorted((LISTED | registered).values(), key=lambda function: function.identifier)

    async def get(self, scoring_fn_id: str) -> ScoringFn:
        """Raises NotFound. A registration goes before what is built in."""
        try:
            return await self._registry.get(scoring_fn_id)
        except NotFound:
            if scoring_fn_id in LISTED:
                return LISTED[scoring_fn_id]
            raise

    async def register(self, request: RegisterScoringFunctionRequest) -> ScoringFn:
        """Raises BadRequest for params that could not be used, or a judge that is not there."""
        built_in = _computed_by(request)
        function = ScoringFn(
            identifier=request.scoring_fn_id,
            provider_resource_id=resource_id(built_in),
            provider_id=built_in.partition("::")[0],
            description=request.description,
            metadata={},
            return_type=request.return_type,
            params=request.params,
        )
        if built_in.startswith(BASIC) or request.params is not None:
            plan = _plan(function, built_in, None)
            if plan.judge_model:
                await self._check_judge(plan.judge_model)
            await self._check_patterns(plan)
        return await self._registry.register(function)

    async def plan(self, scoring_fn_id: str, params: Params | None) -> Plan:
        """The function with the parameters of one call, which go before its own one by one.

        Raises BadRequest for an unknown function or for params that it does not take.
        """
        try:
            function = await self.get(scoring_fn_id)
        except NotFound:
            known = ", ".join(each.identifier for each in await self.list())
            raise BadRequest(
                f"scoring function {scoring_fn_id!r} is not registered; there are {known[:2000]}"
            ) from None
        return _plan(function, _built_in_of(function), params)

    async def open(
        self,
        plan: Plan,
        provider_data: Mapping[str, Any] | None = None,
        priority: Priority = Priority.INTERACTIVE,
    ) -> Scorer:
        """Raises BadRequest for patterns that are none; NotFound or NotReady for a judge's model."""
        grammar = await self._check_patterns(plan)
        make = BUILT_IN[plan.built_in].make
        if make is not None:
            return make(self._workers, [*plan.patterns])
        model = await self._serving(plan.judge_model, "llm", provider_data)
        registered, status = await self._serving.find(plan.judge_model)
        labels = status.description.get("labels", ()) if status else ()
        if len(labels) > 1:
            raise BadRequest(
                f"model {plan.judge_model!r} is a classifier with the labels {', '.join(labels)}; a judge "
                "writes text, or is a reward model with one output"
            )
        if labels:
            return Reward(model, priority)
        constrained = registered.provider_id != "openai"  # endpoints differ in what they know of grammars
        return Judge(
            self._workers,
            plan.judge_model,
            model,
            Template(plan.template),
            plan.patterns,
            grammar if constrained else None,
            plan.as_text,
            priority,
        )

    async def _check_patterns(self, plan: Plan) -> str | None:
        built_in = BUILT_IN[plan.built_in]
        if not plan.patterns or plan.patterns == built_in.patterns:
            return None
        field = "parsing_regexes" if built_in.make else "judge_score_regexes"
        grammar: str | None = await self._workers.call(
            "stack.scoring.patterns:check", plan.patterns, f"params.{field}"
        )
        return grammar

    async def _check_judge(self, model_id: str) -> None:
        try:
            model, _ = await self._serving.find(model_id)
        except NotFound:
            raise BadRequest(
                f"params.judge_model: there is no model {model_id!r}; register it first, or give the id of "
                "another one from GET /v1/models"
            ) from None
        if model.model_type != "llm":
            raise BadRequest(
                f"params.judge_model: model {model_id!r} is an embedding model, which writes no text"
            )


def _computed_by(request: RegisterScoringFunctionRequest) -> str:
    """The built-in function that computes a registered one; raises BadRequest when nothing says which.

    It is named by provider_scoring_fn_id, provider_id or the function's own id; else the params tell it.
    """
    provider = (request.provider_id or "").removeprefix("inline::")
    named = [built_in_named(name) for name in (request.provider_scoring_fn_id, provider) if name]
    found = next(filter(None, named), None)
    if found is None and provider not in ("", *PROVIDERS):
        raise BadRequest(f"there is no scoring provider {provider!r}; providers are {', '.join(PROVIDERS)}")
    found = found or _told_by(request, provider)
    if provider in PROVIDERS and not found.startswith(f"{provider}::"):
        raise BadRequest(f"provider_id {provider!r} does not compute {found!r}, which this is a kind of")
    return found


def _told_by(request: RegisterScoringFunctionRequest, provider: str) -> str:
    kind = request.params.type if request.params else None
    own = built_in_named(request.scoring_fn_id)
    if own is not None and kind in (None, BUILT_IN[own].type):
        return own
    if kind == "llm_as_judge" or (kind is None and provider == JUDGE):
        return "llm-as-judge::base"
    if kind == "regex_parser":
        return "basic::regex_parser_multiple_choice_answer"
    raise BadRequest(
        f"scoring function {request.scoring_fn_id!r} does not say what computes it: set "
        f"provider_scoring_fn_id to one of {', '.join(BUILT_IN)}"
    )


def _built_in_of(function: ScoringFn) -> str:
    found = built_in_named(function.provider_resource_id)
    if found is None:
        raise BadRequest(f"there is no scoring function {function.provider_resource_id!r} that computes")
    return found


def _plan(function: ScoringFn, built_in_id: str, params: Params | None) -> Plan:
    """Raises BadRequest for params of another function's type."""
    built_in = BUILT_IN[built_in_id]
    for given in (function.params, params):
        if given is not None and given.type != built_in.type:
            raise BadRequest(
                f"scoring function {function.identifier!r} takes params of type {built_in.type!r}, "
                f"not {given.type!r}"
            )
    chosen = [each for each in (params, function.params) if each is not None]
    aggregations = next((each.aggregation_functions for each in chosen if each.aggregation_functions), None)
    plan = Plan(function.identifier, built_in_id, tuple(aggregations or built_in.aggregations))
    if built_in.type == "llm_as_judge":
        judges = [each for each in chosen if isinstance(each, LLMAsJudgeScoringFnParams)]
        return replace(plan, **_judge_fields(function, judges))
    parsers = [each for each in chosen if isinstance(each, RegexParserScoringFnParams)]
    patterns = next((each.parsing_regexes for each in parsers if each.parsing_regexes is not None), None)
    if patterns == []:
        raise BadRequest("params.parsing_regexes is empty: give at least one regular expression, or null")
    return replace(plan, patterns=tuple(patterns or built_in.patterns))


def _judge_fields(function: ScoringFn, params: list[LLMAsJudgeScoringFnParams]) -> dict[str, Any]:
    if not params:
        raise BadRequest(
            f"scoring function {function.identifier!r} needs params that name the model that judges: "
            '{"type": "llm_as_judge", "judge_model": "…"}'
        )
    template = next((each.prompt_template for each in params if each.prompt_template), DEFAULT_TEMPLATE)
    if len(template) > MAX_TEMPLATE_CHARS:
        raise BadRequest(
            f"params.prompt_template has {len(template):,} characters; the limit is {MAX_TEMPLATE_CHARS:,}"
        )
    patterns = next(
        (each.judge_score_regexes for each in params if each.judge_score_regexes is not None),
        DEFAULT_PATTERNS,
    )
    if not patterns:
        raise BadRequest("params.judge_score_regexes is empty: give at least one regular expression, or null")
    return {
        "judge_model": params[0].judge_model,
        "template": template,
        "patterns": tuple(patterns),
        "as_text": function.return_type.type == "string",
    }
