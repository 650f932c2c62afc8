"""Scorers that ask a model about each row."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from stack.batch.rolling import PATIENCE_S, patiently
from stack.engine.base import Priority
from stack.errors import TRANSIENT, StackError
from stack.schemas.common import JsonObject
from stack.scoring.scorer import Scorer, ScoreRow, unscored

T = TypeVar("T")

CONCURRENCY = 32  # calls of the model by one scorer at a time
SHORT_PATIENCE_S = 5.0  # with a model that is overloaded or being replaced, of who waits for an answer


class ModelScorer(Scorer):
    def __init__(self, priority: Priority) -> None:
        self.priority = priority
        self._free = asyncio.Semaphore(CONCURRENCY)
        self._away = False

    async def ask_all(
        self, rows: Sequence[JsonObject], ask: Callable[[JsonObject], Awaitable[T]]
    ) -> list[T | ScoreRow]:
        """What `ask` finds of each row, in order. A row that it cannot ask about (ValueError), or that gets
        no answer, has its reason."""

        async def one(row: JsonObject) -> T | ScoreRow:
            try:
                return await self._ask(lambda: ask(row))
            except ValueError as error:
                return unscored(str(error))
            except StackError as error:
                return unscored(f"the judge gave no answer: {error}")

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(row)) for row in rows]
        return [task.result() for task in tasks]

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """Once the model was waited for in vain, the other rows do not wait so long again."""
        async with self._free:
            long = self.priority is Priority.BATCH and not self._away
            try:
                return await patiently(call, PATIENCE_S if long else SHORT_PATIENCE_S)
            except TRANSIENT:
                self._away = True
                raise
