"""Candidates for a dialog: what the model says to it, several times, each with a score."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, TypeAdapter

from stack.batch.work import Answer
from stack.engine.base import Priority
from stack.engine.fold import fold_chat_completion
from stack.models.serving import Serving
from stack.schemas.inference import ChatCompletionRequest, ChatCompletionResponse, LogProbConfig
from stack.schemas.messages import Message
from stack.schemas.sampling import SamplingParams, TopPSamplingStrategy
from stack.scoring.scoring import Scoring
from stack.synthetic.duplicates import Seen

Row = dict[str, Any]

_MESSAGES: TypeAdapter[list[Message]] = TypeAdapter(list[Message])


class Generates(Protocol):
    """What generation needs of a stack."""

    @property
    def serving(self) -> Serving: ...

    @property
    def scoring(self) -> Scoring: ...


class Recipe(BaseModel):
    """How candidates are made. `scoring_fn_id` None: the score is the mean log-probability of a token."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    candidates: int
    max_tokens: int
    temperature: float
    scoring_fn_id: str | None = None


@asynccontextmanager
async def generating(
    open_stack: Callable[[], AbstractAsyncContextManager[Generates]], recipe: Recipe
) -> AsyncGenerator[Answer]:
    """A row has `messages`, the dialog; what comes of it are `candidates`, near-duplicates left out."""
    async with open_stack() as stack:
        yield _Generator(stack, recipe).answer


class _Generator:
    def __init__(self, stack: Generates, recipe: Recipe) -> None:
        self._stack, self._recipe = stack, recipe

    async def answer(self, row: Row) -> Row:
        dialog = _MESSAGES.validate_python(row["messages"])
        drawn = await asyncio.gather(*(self._draw(dialog) for _ in range(self._recipe.candidates)))
        seen = Seen()
        candidates = [each for each in drawn if each["answer"].strip() and seen.add(each["answer"])]
        if self._recipe.scoring_fn_id is not None and candidates:
            await self._score(dialog, candidates)
        scored = [each for each in candidates if each["score"] is not None]
        return {
            "candidates": scored,
            "generated": len(drawn),
            "duplicates": len(drawn) - len(candidates),
            "unscored": len(candidates) - len(scored),
        }

    async def _draw(self, dialog: list[Message]) -> Row:
        recipe = self._recipe
        model = await self._stack.serving(recipe.model, "llm")
        request = ChatCompletionRequest(
            model_id=recipe.model,
            messages=dialog,
            sampling_params=SamplingParams(
                strategy=TopPSamplingStrategy(temperature=recipe.temperature, top_p=1.0),
                max_tokens=recipe.max_tokens,
            ),
            logprobs=LogProbConfig(top_k=0) if recipe.scoring_fn_id is None else None,
        )
        response = await fold_chat_completion(model.chat_completion(request, Priority.BATCH))
        text = response.completion_message.content
        return {"answer": text if isinstance(text, str) else "", "score": mean_logprob(response)}

    async def _score(self, dialog: list[Message], candidates: list[Row]) -> None:
        """By a scoring function, a judge for example, whose score is a number."""
        assert self._recipe.scoring_fn_id is not None
        functions = {self._recipe.scoring_fn_id: None}
        board = await self._stack.scoring.open(functions, priority=Priority.BATCH)
        asked = dialog[-1].content
        rows: Any = [
            {"input_query": asked if isinstance(asked, str) else "", "generated_answer": each["answer"]}
            for each in candidates
        ]
        scored = (await board.score(rows))[self._recipe.scoring_fn_id]
        for candidate, found in zip(candidates, scored, strict=True):
            score = found["score"]
            candidate["score"] = float(score) if isinstance(score, int | float) else None


def mean_logprob(response: ChatCompletionResponse) -> float | None:
    """Length-normalised: nats per token, 0 at most. None: there are none."""
    logprobs = [max(each.logprobs_by_token.values()) for each in response.logprobs or ()]
    return sum(logprobs) / len(logprobs) if logprobs else None
