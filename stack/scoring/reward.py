"""A reward model as judge: what it thinks of an answer, a number without bounds, the higher the better."""

from __future__ import annotations

from collections.abc import Sequence

from stack.engine.base import Inference, Priority
from stack.schemas.common import JsonObject
from stack.scoring.model_scorer import ModelScorer
from stack.scoring.scorer import ScoreRow, text


class Reward(ModelScorer):
    columns = ("input_query", "generated_answer")

    def __init__(self, model: Inference, priority: Priority = Priority.INTERACTIVE) -> None:
        super().__init__(priority)
        self._model = model

    async def score_rows(self, rows: Sequence[JsonObject]) -> list[ScoreRow]:
        return await self.ask_all(rows, self._score)

    async def _score(self, row: JsonObject) -> ScoreRow:
        asked, answer = text(row, "input_query"), text(row, "generated_answer")
        dialog = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        ((rewards,),) = await self._model.classify([dialog])
        (reward,) = rewards.values()
        return {"score": reward}
