"""DatasetIO: read and append rows of registered datasets."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from stack.api.routing import api_router
from stack.context import RowDatasets
from stack.datasets.tables import Page
from stack.errors import BadRequest
from stack.schemas.datasetio import AppendRowsRequest, IterrowsResponse

router = api_router("DatasetIO")

ALL = -1


@router.get("/v1/datasetio/iterrows/{dataset_id:path}", response_model=IterrowsResponse)
async def iterrows(
    dataset_id: str,
    datasets: RowDatasets,
    start_index: Annotated[int | None, Query(description="Index of the first row; default 0")] = None,
    limit: Annotated[int | None, Query(description="Rows at most; default or -1: all")] = None,
) -> Response:
    """A page of rows: at most 10,000 rows and 16 MiB. While more follow, `next_start_index` leads on."""
    start = start_index or 0
    if start < 0:
        raise BadRequest(f"start_index counts from 0, it is not {start}")
    if limit is not None and limit < ALL:
        raise BadRequest(f"limit is a number of rows, or -1 for all, not {limit}")
    page = await datasets.page(dataset_id, start, None if limit == ALL else limit)
    return Response(_body(page), media_type="application/json", headers={"x-total-rows": str(page.total)})


@router.post("/v1/datasetio/append-rows/{dataset_id:path}")
async def append_rows(dataset_id: str, request: AppendRowsRequest, datasets: RowDatasets) -> None:
    """Append rows, all or none, in their order. They are checked against the dataset's purpose."""
    await datasets.append(dataset_id, request.rows)


def _body(page: Page) -> str:
    """The rows are JSON already: parsing and writing them again would change nothing."""
    end = "" if page.next_start is None else f',"next_start_index":{page.next_start}'
    return f'{{"data":[{",".join(page.rows)}]{end}}}'
