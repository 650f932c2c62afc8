"""Scores by a function that gets whole rows in a child process."""

from __future__ import annotations

from collections.abc import Sequence

from stack.schemas.common import JsonObject
from stack.scoring.scorer import Scorer, ScoreRow
from stack.scoring.workers import Patience, Workers

BATCH_ROWS = 16


class ChildScorer(Scorer):
    """`function` takes rows, of which it reads `columns` and, where they are there, the `optional` ones."""

    def __init__(
        self, workers: Workers, function: str, columns: tuple[str, ...], optional: tuple[str, ...]
    ) -> None:
        self.columns = columns
        self._workers, self._function, self._sent = workers, function, {*columns, *optional}
        self._patience = Patience()

    async def score_rows(self, rows: Sequence[JsonObject]) -> list[ScoreRow]:
        sent = [{name: value for name, value in row.items() if name in self._sent} for row in rows]
        return await self._workers.map(self._function, sent, batch_rows=BATCH_ROWS, patience=self._patience)
