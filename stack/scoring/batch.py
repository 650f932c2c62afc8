"""All rows of a dataset, scored page by page; the results in little memory, and as a dataset of their own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any

from pydantic_core import from_json, to_json

from stack.datasets.datasets import Datasets
from stack.errors import NotFound
from stack.schemas.common import JsonObject
from stack.schemas.datasets import Dataset, DatasetPurpose, RegisterDatasetRequest, RowsDataSource
from stack.scoring.functions import Plan
from stack.scoring.scoreboard import Scoreboard
from stack.scoring.scorer import ScoreRow
from stack.store.database import Database

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


async def score_dataset(
    datasets: Datasets, dataset_id: str, board: Scoreboard, save_with: Database | None = None
) -> BatchResults:
    """Score all rows; with `save_with`, whose locks are used, save them as a dataset.

    Raises NotFound; BadRequest for a dataset without the columns that a function reads.
    """
    dataset = await datasets.registry.get(dataset_id)
    results: dict[str, list[bytes]] = {plan.scoring_fn_id: [] for plan in board.plans}
    saved = None if save_with is None else await asyncio.to_thread(SavedRows, save_with)
    try:
        async for page in datasets.batches(dataset_id, PAGE_ROWS):
            rows = with_aliases(page, dataset)
            if not any(results.values()):
                board.check(rows)
            scored = await board.score(rows)
            for scoring_fn_id, score_rows in scored.items():
                results[scoring_fn_id].append((await asyncio.to_thread(to_json, score_rows))[1:-1])
            if saved is not None:
                await asyncio.to_thread(saved.write, page, scored)
        done = BatchResults(board.aggregated(), results)
        if saved is not None:
            done.dataset_id = await saved.register(datasets, dataset, board.plans)
        return done
    finally:
        if saved is not None:
            saved.close()


def with_aliases(rows: Sequence[JsonObject], dataset: Dataset) -> list[JsonObject]:
    """Rows as scoring functions read them: what the purpose calls `answer` is their `expected_answer`."""
    aliases = _ALIASES.get(dataset.purpose, {})
    return [{name: row[column] for column, name in aliases.items() if column in row} | row for row in rows]


class SavedRows:
    """Scored rows on their way to a dataset: on disk, since nothing is registered before all are scored."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._rows = 0

    def write(self, page: Sequence[JsonObject], scored: Mapping[str, Sequence[ScoreRow]]) -> None:
        for number, row in enumerate(page):
            before = row.get("scores")
            scores = dict(before) if isinstance(before, dict) else {}
            scores |= {scoring_fn_id: rows[number] for scoring_fn_id, rows in scored.items()}
            self._file.write(to_json(row | {"scores": scores}) + b"\n")
        self._rows += len(page)

    async def register(self, datasets: Datasets, dataset: Dataset, scored_by: Sequence[Plan]) -> str:
        """Register the rows, in place of what an earlier call left under their id.

        It is the same for the same rows, functions and parameters.
        """
        plans = [asdict(plan) for plan in scored_by]
        said = [dataset.identifier, dataset.provider_resource_id, self._rows, plans]
        identifier = f"scores-{hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]}"
        metadata: JsonObject = {
            "dataset_id": dataset.identifier,
            "rows": self._rows,
            "scoring_functions": [plan.scoring_fn_id for plan in scored_by],
        }
        # The same call may be made twice at a time. 256 names, since each may be a file.
        async with self._database.lock(f"scores-{identifier[-2:]}"):
            with contextlib.suppress(NotFound):
                await datasets.delete(identifier)
            await self._write(datasets, identifier, dataset.purpose, metadata)
        return identifier

    async def _write(
        self, datasets: Datasets, identifier: str, purpose: DatasetPurpose, metadata: JsonObject
    ) -> None:
        self._file.seek(0)
        source = RowsDataSource(rows=await asyncio.to_thread(self._next))
        await datasets.register(
            RegisterDatasetRequest(purpose=purpose, source=source, metadata=metadata, dataset_id=identifier)
        )
        while rows := await asyncio.to_thread(self._next):
            await datasets.append(identifier, rows)

    def _next(self) -> list[Any]:
        return [from_json(line) for line in self._file.readlines(SAVED_BYTES)]

    def close(self) -> None:
        self._file.close()
