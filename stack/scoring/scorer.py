"""What a scoring function is while it scores: made once for its parameters, then given any number of rows."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from pydantic import JsonValue

from stack.errors import BadRequest
from stack.schemas.common import JsonObject

ScoreRow = JsonObject
"""`score`: a number, or what a judge wrote; null with an `error` for a row that could not be scored."""

IN_THREAD_ROWS = 200  # so many are scored on the event loop


class Scorer(ABC):
    columns: tuple[str, ...] = ("generated_answer", "expected_answer")
    """Those without which a row cannot be scored."""

    @abstractmethod
    async def score_rows(self, rows: Sequence[JsonObject]) -> list[ScoreRow]:
        """One for each row, in order. A row that cannot be scored has its reason; the others are scored."""


class PlainScorer(Scorer):
    """Scores by a function of one row that takes time in proportion to the row's length."""

    def __init__(self, score: Callable[[JsonObject], float]) -> None:
        """`score` raises ValueError with the reason for a row that cannot be scored."""
        self._score = score

    async def score_rows(self, rows: Sequence[JsonObject]) -> list[ScoreRow]:
        if len(rows) <= IN_THREAD_ROWS:
            return self._all(rows)
        return await asyncio.to_thread(self._all, rows)

    def _all(self, rows: Sequence[JsonObject]) -> list[ScoreRow]:
        scored: list[ScoreRow] = []
        for row in rows:
            try:
                scored.append({"score": self._score(row)})
            except ValueError as error:
                scored.append(unscored(str(error)))
        return scored


def unscored(reason: str) -> ScoreRow:
    return {"score": None, "error": reason}


def given(row: JsonObject, column: str) -> JsonValue:
    """A column's value. Raises ValueError when there is none."""
    value = row.get(column)
    if value is None:
        raise ValueError(f"the row has no {column}")
    return value


def text(row: JsonObject, column: str) -> str:
    """A column that holds text. Raises ValueError."""
    value = given(row, column)
    if not isinstance(value, str):
        raise ValueError(f"{column} is a text, not {type(value).__name__}")
    return value


def check_columns(scoring_fn_id: str, scorer: Scorer, rows: Sequence[JsonObject]) -> None:
    """Raises BadRequest when no row has some column, which is the caller's mistake and not a row's."""
    missing = [column for column in scorer.columns if all(row.get(column) is None for row in rows)]
    if rows and missing:
        raise BadRequest(
            f"scoring function {scoring_fn_id!r} reads the columns {', '.join(scorer.columns)}, "
            f"and no row has {' and '.join(missing)}; the first row has {', '.join(rows[0])[:200] or 'none'}"
        )
