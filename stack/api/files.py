"""Files: upload into buckets in any number of parts, list, delete, and read back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Header, Query, Request, Response
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from stack.api.ranges import is_unchanged, wanted
from stack.api.routing import api_router
from stack.context import CurrentStack, Stack, StoredFiles
from stack.errors import BadRequest, Timeout
from stack.files.files import StoredFile
from stack.files.uploads import Upload
from stack.files.uris import CONTENT_PATH, content_url
from stack.schemas.files import (
    BucketResponse,
    CreateUploadSessionRequest,
    FileResponse,
    FileUploadResponse,
    ListBucketResponse,
    ListFileResponse,
)

IDLE_S = 60.0
"""A client that sends nothing for so long has gone, though nobody said so."""

SESSION_PATH = "/v1/files/session:"

# The spec requires a parameter of "list all buckets", which can do without.
_BUCKET = {"name": "bucket", "in": "query", "required": True, "schema": {"type": "string"}}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}

# Whatever a caller uploaded, no browser runs it in this server's name.
_SAFE = {"x-content-type-options": "nosniff", "content-security-policy": "sandbox; default-src 'none'"}

router = api_router("Files")


@router.get("/v1/files", openapi_extra={"parameters": [_BUCKET]})
async def list_buckets(
    files: StoredFiles, bucket: Annotated[str, Query(include_in_schema=False)] = ""
) -> ListBucketResponse:
    """All buckets that have files; those whose names begin with `bucket`, if it is given."""
    return ListBucketResponse(data=[BucketResponse(name=name) for name in await files.buckets(bucket)])


@router.post("/v1/files")
async def create_upload_session(
    body: CreateUploadSessionRequest, request: Request, stack: CurrentStack
) -> FileUploadResponse:
    """Begin an upload. The file exists once all its bytes were posted to the answer's `url`."""
    upload = await stack.uploads.create(body.bucket, body.key, body.mime_type, body.size)
    return _session(upload, base_url(request, stack))


@router.get(SESSION_PATH + "{upload_id}")
async def get_upload_session_info(
    upload_id: str, request: Request, response: Response, stack: CurrentStack
) -> FileUploadResponse:
    """How far an upload has come: the next byte to send is the one at `offset`."""
    upload = await stack.uploads.get(upload_id)
    response.headers["upload-offset"] = str(upload.offset)
    return _session(upload, base_url(request, stack))


@router.post(
    SESSION_PATH + "{upload_id}", openapi_extra={"requestBody": {"content": _BYTES, "required": True}}
)
async def upload_content_to_session(
    upload_id: str,
    request: Request,
    response: Response,
    stack: CurrentStack,
    upload_offset: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> FileResponse | None:
    """Add the body's bytes to an upload. With the last of them the file is answered, before that null.

    The header `Upload-Offset` says where the bytes belong: a part that is sent twice is then refused.
    """
    body = _Body(request)
    upload, file = await stack.uploads.append(
        upload_id,
        body.chunks(),
        offset=_number("Upload-Offset", upload_offset),
        length=_number("Content-Length", request.headers.get("content-length")),
    )
    if body.stalled:
        raise Timeout(f"no bytes came for {IDLE_S:g} s; the upload session is at offset {upload.offset}")
    response.headers["upload-offset"] = str(upload.offset)
    return _file(file, base_url(request, stack)) if file else None


@router.api_route(CONTENT_PATH + "{bucket}/{key:path}", methods=["GET", "HEAD"], include_in_schema=False)
async def read_content(bucket: str, key: str, request: Request, files: StoredFiles) -> Response:
    """A file's contents, or a range of them."""
    file = await files.get(bucket, key)
    etag = f'"{file.blob}"'
    headers = _SAFE | {"etag": etag, "accept-ranges": "bytes", "content-type": file.mime_type}
    if is_unchanged(request.headers, etag):
        return Response(status_code=304, headers=headers)
    status, part = wanted(request.headers, etag, file.size)
    headers["content-length"] = str(len(part))
    if status == 206:
        headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{file.size}"
    if request.method == "HEAD" or not part:
        return Response(status_code=status, headers=headers)
    blocks = files.read(file, part.start, part.stop)
    first = await anext(blocks)  # what goes wrong before it keeps its status
    return StreamingResponse(_chain(first, blocks), status, headers)


@router.get("/v1/files/{bucket}")
async def list_files_in_bucket(bucket: str, request: Request, stack: CurrentStack) -> ListFileResponse:
    """All files in a bucket, in the order of their keys."""
    base = base_url(request, stack)
    return ListFileResponse(data=[_file(file, base) for file in await stack.files.in_bucket(bucket)])


@router.get("/v1/files/{bucket}/{key:path}")
async def get_file(bucket: str, key: str, request: Request, stack: CurrentStack) -> FileResponse:
    """What is known of a file. Its contents are at `url`."""
    return _file(await stack.files.get(bucket, key), base_url(request, stack))


@router.delete("/v1/files/{bucket}/{key:path}")
async def delete_file(bucket: str, key: str, request: Request, stack: CurrentStack) -> FileResponse:
    """Delete a file and free its bytes. The answer says what it was."""
    return _file(await stack.files.delete(bucket, key), base_url(request, stack))


def base_url(request: Request, stack: Stack) -> str:
    """Scheme and host of this server, as its callers know them."""
    return (stack.settings.public_url or f"{request.url.scheme}://{request.url.netloc}").rstrip("/")


def _session(upload: Upload, base: str) -> FileUploadResponse:
    url = f"{base}{SESSION_PATH}{upload.id}"
    return FileUploadResponse(id=upload.id, url=url, offset=upload.offset, size=upload.size)


def _file(file: StoredFile, base: str) -> FileResponse:
    return FileResponse(
        bucket=file.bucket,
        key=file.key,
        mime_type=file.mime_type,
        url=content_url(base, file.bucket, file.key),
        bytes=file.size,
        created_at=int(file.created_at.timestamp()),
    )


def _number(header: str, value: str | None) -> int | None:
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) < 19):
        raise BadRequest(f"the header {header} is a number of bytes, not {value[:40]!r}")
    return int(value)


class _Body:
    """The request's bytes, which end when the client goes away: what came is a part as any other."""

    def __init__(self, request: Request) -> None:
        self._chunks = request.stream()
        self.stalled = False

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            try:
                async with asyncio.timeout(IDLE_S):
                    chunk = await anext(self._chunks)
            except TimeoutError:
                self.stalled = True
                return
            except (StopAsyncIteration, ClientDisconnect):
                return
            yield chunk


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for block in rest:
        yield block
