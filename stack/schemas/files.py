"""Files: objects in buckets, uploaded in sessions."""

from typing import Annotated

from pydantic import Field

from stack.schemas.common import Schema

Bucket = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$", description="Letters, digits, _ and -")]
Key = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_/.-]+$", description="Letters, digits, _, -, / and .")]


class CreateUploadSessionRequest(Schema):
    bucket: Bucket
    key: Key
    mime_type: str
    size: int = Field(ge=0, description="File size in bytes")


class FileUploadResponse(Schema):
    """An upload that has begun."""

    id: str = Field(description="ID of the upload session")
    url: str = Field(description="Where the contents are to be posted")
    offset: int = Field(description="Bytes received so far")
    size: int = Field(description="Bytes expected in all")


class FileResponse(Schema):
    """A file in a bucket."""

    bucket: str
    key: str
    mime_type: str
    url: str = Field(description="Where the contents can be read")
    bytes: int = Field(description="File size in bytes")
    created_at: int = Field(description="Seconds since 1970-01-01 UTC")


class ListFileResponse(Schema):
    data: list[FileResponse]


class BucketResponse(Schema):
    name: str


class ListBucketResponse(Schema):
    data: list[BucketResponse]
