"""Datasets: register, list, get and delete the rows that training and evaluation read."""

from __future__ import annotations

from starlette.requests import Request

from stack.api.routing import api_router
from stack.context import CurrentStack, RowDatasets
from stack.files.uris import canonical_uri
from stack.schemas.datasets import Dataset, ListDatasetsResponse, RegisterDatasetRequest, URIDataSource

router = api_router("Datasets")


@router.get("/v1/datasets")
async def list_datasets(datasets: RowDatasets) -> ListDatasetsResponse:
    """All datasets. Of a large `rows` source only the first rows are shown; iterrows gives all."""
    return ListDatasetsResponse(data=await datasets.registry.list())


@router.post("/v1/datasets")
async def register_dataset(request: RegisterDatasetRequest, stack: CurrentStack, http: Request) -> Dataset:
    """Register a dataset. The answer comes once its rows are read, checked against the purpose and stored."""
    if isinstance(source := request.source, URIDataSource):
        uri = canonical_uri(source.uri, str(http.base_url), stack.settings)
        request = request.model_copy(update={"source": URIDataSource(uri=uri)})
    return await stack.datasets.register(request)


@router.get("/v1/datasets/{dataset_id:path}")
async def get_dataset(dataset_id: str, datasets: RowDatasets) -> Dataset:
    """Get a registered dataset."""
    return await datasets.registry.get(dataset_id)


@router.delete("/v1/datasets/{dataset_id:path}")
async def delete_dataset(dataset_id: str, datasets: RowDatasets) -> None:
    """Unregister a dataset and free its rows."""
    await datasets.delete(dataset_id)
