"""Whether a registered dataset has what a method learns from, by its first rows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pydantic_core import from_json

from stack.datasets.datasets import Datasets
from stack.errors import BadRequest, NotFound
from stack.schemas.post_training import DataConfig
from stack.training.plan import Data
from stack.training.rows import conversation, pair

CHECKED_ROWS = 100
DPO_PURPOSE = "post-training/messages"


async def resolve(datasets: Datasets, method: str, config: DataConfig, field: str, dataset_id: str) -> Data:
    """The dataset as it is now. Raises BadRequest for what is not there or cannot be learned from.

    `field` is the request's. Later rows are read by the job.
    """
    where = f"training_config.data_config.{field}"
    try:
        dataset = await datasets.registry.get(dataset_id)
        page = await datasets.page(dataset_id, 0, CHECKED_ROWS)
    except NotFound:
        raise BadRequest(
            f"{where}: dataset {dataset_id[:80]!r} is not registered; GET /v1/datasets lists those"
        ) from None
    if method == "dpo" and dataset.purpose != DPO_PURPOSE:
        raise BadRequest(
            f"{where}: dataset {dataset_id!r} is for {dataset.purpose}; preferences are in one for "
            f"{DPO_PURPOSE}, with columns chosen and rejected beside messages"
        )
    if not page.rows:
        raise BadRequest(f"{where}: dataset {dataset_id!r} is empty; append rows first")
    try:
        await asyncio.to_thread(_check_rows, method, config, page.rows)
    except BadRequest as error:
        raise BadRequest(f"{where}: dataset {dataset_id!r}, {error}") from error
    return Data(dataset_id=dataset_id, table=dataset.provider_resource_id, rows=page.total)


def _check_rows(method: str, config: DataConfig, rows: Sequence[str]) -> None:
    for index, text in enumerate(rows):
        row = from_json(text)
        if method == "dpo":
            pair(row, index)
        else:
            conversation(row, index, config.data_format)
