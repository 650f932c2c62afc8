"""Datasets: the registry of rows to train on and to evaluate with."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypeAliasType

from stack.schemas.common import Identifier, JsonObject, Schema

DatasetPurpose = TypeAliasType(
    "DatasetPurpose", Literal["post-training/messages", "eval/question-answer", "eval/messages-answer"]
)
"""Names the columns: `messages`; `question` and `answer`; `messages` and `answer`."""


class URIDataSource(Schema):
    """A dataset behind a URI."""

    type: Literal["uri"] = "uri"
    uri: str = Field(
        description="https://host/data.jsonl, lsfs://data.jsonl, huggingface://owner/name?split=train, "
        "or data:csv;base64,{base64}"
    )


class RowsDataSource(Schema):
    """A dataset given row by row."""

    type: Literal["rows"] = "rows"
    rows: list[JsonObject]


DataSource = TypeAliasType(
    "DataSource", Annotated[URIDataSource | RowsDataSource, Field(discriminator="type")]
)


class Dataset(Schema):
    identifier: str
    provider_resource_id: str
    provider_id: str
    type: Literal["dataset"] = "dataset"
    purpose: DatasetPurpose
    source: DataSource
    metadata: JsonObject


class RegisterDatasetRequest(Schema):
    purpose: DatasetPurpose = Field(description="What the dataset is for; says which columns it has")
    source: DataSource
    metadata: JsonObject | None = None
    dataset_id: Identifier | None = Field(None, description="Default: a generated one")


class ListDatasetsResponse(Schema):
    data: list[Dataset]
