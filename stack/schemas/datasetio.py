"""DatasetIO: rows of registered datasets."""

from pydantic import Field

from stack.schemas.common import JsonObject, Schema


class AppendRowsRequest(Schema):
    rows: list[JsonObject]


class IterrowsResponse(Schema):
    """One page of a dataset's rows."""

    data: list[JsonObject]
    next_start_index: int | None = Field(None, description="Where the next page starts; absent on the last")
