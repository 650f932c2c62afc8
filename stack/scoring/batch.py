"""All rows of a dataset, scored page by page; the results in little memory, and as a dataset of their own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any

from pydantic_core import from_json, to_json

from stack.datasets.datasets import Datasets
from stack.errors import NotFound
from stack.schemas.common import JsonObject
from stack.schemas.datasets import Dataset, RegisterDatasetRequest, RowsDataSource
from stack.scoring.scoreboard import Scoreboard
from stack.scoring.scorer import ScoreRow

PAGE_ROWS = 2000
SAVED_BYTES = 8 << 20  # of rows that one append writes

# What a dataset's own columns are called by those who score: the purpose's name -> its columns' other names.
_ALIASES = {
    "eval/question-answer": {"question": "input_query", "answer": "expected_answer"},
    "eval/messages-answer": {"messages": "input_query", "answer": "expected_answer"},
}


@dataclass(slots=True)
class BatchResults:
    """`score_rows` are JSON, without the brackets of a list: 20 bytes a row where objects take 200."""

    aggregated: dict[str, JsonObject]
    score_rows: dict[str, list[bytes]]
    dataset_id: str | None = None

    def body(self) -> bytes:
        """A ScoreBatchResponse."""
        parts = [b"{"]
        if self.dataset_id is not None:
            parts.append(b'"dataset_id":%b,' % to_json(self.dataset_id))
        parts.append(b'"results":{')
        for number, (scoring_fn_id, rows) in enumerate(self.score_rows.items()):
            parts += [b"," if number else b"", to_json(scoring_fn_id), b':{"score_rows":[', b",".join(rows)]
            parts += [b'],"aggregated_results":', to_json(self.aggregated[scoring_fn_id]), b"}"]
        return b"".join([*parts, b"}}"])


async def score_dataset(datasets: Datasets, dataset_id: str, board: Scoreboard, save: bool) -> BatchResults:
    """Raises NotFound; BadRequest for a dataset without the columns that a function reads."""
    dataset = await datasets.registry.get(dataset_id)
    results: dict[str, list[bytes]] = {plan.scoring_fn_id: [] for plan in board.plans}
    saved = await asyncio.to_thread(_Saved) if save else None
    try:
        async for page in datasets.batches(dataset_id, PAGE_ROWS):
            scored = await board.score(with_aliases(page, dataset))
            for scoring_fn_id, rows in scored.items():
                results[scoring_fn_id].append((await asyncio.to_thread(to_json, rows))[1:-1])
            if saved is not None:
                await asyncio.to_thread(saved.write, page, scored)
        done = BatchResults(board.aggregated(), results)
        if saved is not None:
            done.dataset_id = await saved.register(datasets, dataset, board)
        return done
    finally:
        if saved is not None:
            saved.close()


def with_aliases(rows: Sequence[JsonObject], dataset: Dataset) -> list[JsonObject]:
    """Rows as scoring functions read them: what the purpose calls `answer` is their `expected_answer`."""
    aliases = _ALIASES.get(dataset.purpose, {})
    return [{name: row[column] for column, name in aliases.items() if column in row} | row for row in rows]


class _Saved:
    """Scored rows on their way to a dataset: on disk, since nothing is registered before all are scored."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._rows = 0

    def write(self, page: Sequence[JsonObject], scored: dict[str, list[ScoreRow]]) -> None:
        for number, row in enumerate(page):
            before = row.get("scores")
            scores = dict(before) if isinstance(before, dict) else {}
            scores |= {scoring_fn_id: rows[number] for scoring_fn_id, rows in scored.items()}
            self._file.write(to_json(row | {"scores": scores}) + b"\n")
        self._rows += len(page)

    async def register(self, datasets: Datasets, dataset: Dataset, board: Scoreboard) -> str:
        """Register the rows under the results' own id, in place of what an earlier call left there."""
        plans = [asdict(plan) for plan in board.plans]
        identifier = _identifier([dataset.identifier, dataset.provider_resource_id, self._rows, plans])
        metadata = {
            "dataset_id": dataset.identifier,
            "rows": self._rows,
            "scoring_functions": list(board.tallies),
        }
        self._file.seek(0)
        first = await asyncio.to_thread(self._next)
        with contextlib.suppress(NotFound):
            await datasets.delete(identifier)
        await datasets.register(
            RegisterDatasetRequest(
                purpose=dataset.purpose,
                source=RowsDataSource(rows=first),
                metadata=metadata,
                dataset_id=identifier,
            )
        )
        while rows := await asyncio.to_thread(self._next):
            await datasets.append(identifier, rows)
        return identifier

    def _next(self) -> list[Any]:
        return [from_json(line) for line in self._file.readlines(SAVED_BYTES)]

    def close(self) -> None:
        self._file.close()


def _identifier(said: list[Any]) -> str:
    return f"scores-{hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]}"
