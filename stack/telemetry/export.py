"""Spans as rows of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pydantic_core import to_json

from stack.errors import BadRequest, NotFound
from stack.schemas.common import JsonObject
from stack.schemas.datasets import Dataset, RegisterDatasetRequest, RowsDataSource
from stack.schemas.telemetry import SaveSpansToDatasetRequest
from stack.telemetry.conditions import checked
from stack.telemetry.spans import moment
from stack.telemetry.store import Found, Spans

_PAGE = 1000  # spans that are read together, and rows of an append

# What is written to `question` and `answer` of a row which has none: the first of these that the span has.
_QUESTIONS = ("question", "input", "gen_ai.input.messages")
_ANSWERS = ("answer", "output", "gen_ai.output.messages")


class Datasets(Protocol):
    """What is needed of them."""

    async def append(self, identifier: str, rows: Sequence[dict[str, Any]]) -> None: ...

    async def register(self, request: RegisterDatasetRequest) -> Dataset: ...


async def save_spans(spans: Spans, datasets: Datasets, request: SaveSpansToDatasetRequest) -> int:
    """Add a row for each span to the dataset, which is registered if it is not there; how many rows.

    Raises BadRequest when there is no such span, or the dataset has columns that the rows lack.
    """
    conditions = checked(request.attribute_filters)
    keys, seen, written = request.attributes_to_save, set[int](), 0
    async for page in spans.pages(conditions, _PAGE):
        below = await spans.below(page, request.max_depth)
        new = [each for each in below if each.id not in seen and (not keys or each.attributes.keys() & keys)]
        seen.update(each.id for each in below)
        for start in range(0, len(new), _PAGE):
            rows = [_row(each, keys) for each in new[start : start + _PAGE]]
            await _append(datasets, request, rows)
            written += len(rows)
    if not written:
        raise BadRequest("no span meets attribute_filters and has one of attributes_to_save")
    return written


async def _append(datasets: Datasets, request: SaveSpansToDatasetRequest, rows: list[JsonObject]) -> None:
    try:
        await datasets.append(request.dataset_id, rows)
    except NotFound:
        filters = [condition.model_dump() for condition in request.attribute_filters]
        await datasets.register(
            RegisterDatasetRequest(
                purpose="eval/question-answer",
                source=RowsDataSource(rows=list[Any](rows)),
                metadata={"attribute_filters": list[Any](filters)},
                dataset_id=request.dataset_id,
            )
        )


def _row(span: Found, keys: Sequence[str]) -> JsonObject:
    row: JsonObject = {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_span_id": span.parent_span_id,
        "name": span.name,
        "start_time": moment(span.start_us).isoformat(),
        "end_time": None if span.end_us is None else moment(span.end_us).isoformat(),
        "status": span.status,
    }
    row |= {key: span.attributes.get(key) for key in keys}
    for column, sources in (("question", _QUESTIONS), ("answer", _ANSWERS)):
        found = next((row[key] for key in sources if row.get(key) is not None), "")
        row[column] = found if isinstance(found, str) else to_json(found).decode()
    return row
