"""Several scoring functions over the same rows, page after page, and what their scores amount to so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stack.schemas.common import JsonObject
from stack.scoring.builtin import BUILT_IN
from stack.scoring.functions import Plan
from stack.scoring.scorer import Scorer, ScoreRow, check_columns
from stack.scoring.tally import Tally


class Scoreboard:
    """`tallies` are by scoring function; those of several processes merge."""

    def __init__(self, scorers: Mapping[Plan, Scorer]) -> None:
        self.plans = tuple(scorers)
        self.tallies = {plan.scoring_fn_id: Tally() for plan in scorers}
        self._scorers = scorers

    @property
    def direct(self) -> int:
        """Up to so many rows of a dataset are scored while a request waits."""
        return min(BUILT_IN[plan.built_in].direct for plan in self.plans)

    def check(self, rows: Sequence[JsonObject]) -> None:
        """Raises BadRequest if a column that some function reads is in none of the rows."""
        for plan, scorer in self._scorers.items():
            check_columns(plan.scoring_fn_id, scorer, rows)

    async def score(self, rows: Sequence[JsonObject]) -> dict[str, list[ScoreRow]]:
        """By scoring function, one for each row."""
        scored = {plan.scoring_fn_id: await scorer.score_rows(rows) for plan, scorer in self._scorers.items()}
        for scoring_fn_id, score_rows in scored.items():
            self.tallies[scoring_fn_id].add(score_rows)
        return scored

    def aggregated(self) -> dict[str, JsonObject]:
        return {
            plan.scoring_fn_id: self.tallies[plan.scoring_fn_id].aggregate(plan.aggregations)
            for plan in self.plans
        }
