"""The bytes behind a URI that a caller named: the web, files of this server, object stores, one folder."""

from __future__ import annotations

import asyncio
import mimetypes
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from email.message import Message
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from stack import egress
from stack.egress import Download
from stack.errors import BadRequest, Timeout, UpstreamError
from stack.files.files import Files
from stack.settings import Settings
from stack.store.filesystems import driver_errors, open_filesystem

SCHEMES = ("http", "https", "data", "files", "file", "lsfs", "s3", "gs")
BLOCK_BYTES = 1 << 20
CONTENT_PATH = "/v1/files/content:"
"""Where the contents of uploaded files are read: …content:BUCKET/KEY."""

# What `mimetypes` knows on one machine and not on another.
_TYPES = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown",
    ".ndjson": "application/x-ndjson",
    ".parquet": "application/vnd.apache.parquet",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
}


def content_url(base_url: str, bucket: str, key: str) -> str:
    """Where a file's contents are read. Bucket and key have only characters that a URL may have."""
    return f"{base_url.rstrip('/')}{CONTENT_PATH}{bucket}/{key}"


def canonical_uri(uri: str, base_url: str, settings: Settings) -> str:
    """`files://BUCKET/KEY` for the `url` that this server gave for an uploaded file; all else as it is.

    `base_url` is the one of the request. It may change with the next; files:// stays.
    """
    for base in filter(None, (base_url, settings.public_url)):
        own = _split(f"{base.rstrip('/')}{CONTENT_PATH}")
        asked = _split(uri)
        if own and asked and asked[0] == own[0] and asked[1].startswith(own[1]):
            return f"files://{unquote(asked[1].removeprefix(own[1]))}"
    return uri


def open_uri(
    uri: str, files: Files, settings: Settings, *, max_bytes: int, timeout_s: float
) -> AbstractAsyncContextManager[Download]:
    """What is at the URI; its chunks are read once and raise BadRequest past `max_bytes`.

    http(s) and data URLs; files://bucket/key of files uploaded here; file:// and lsfs:// below
    STACK_FILE_ROOT; s3:// and gs:// with the server's own credentials. Time is bounded for everything within
    the `async with`.
    BadRequest: a URI that must be changed. UpstreamError, Timeout: what it names failed.
    """
    scheme = uri.partition(":")[0].lower()
    if scheme in ("http", "https"):
        return egress.stream(uri, max_bytes=max_bytes, timeout_s=timeout_s, allowed=settings.egress_allowed)
    return _timed(uri, scheme, files, settings, max_bytes, timeout_s)


@asynccontextmanager
async def _timed(
    uri: str, scheme: str, files: Files, settings: Settings, max_bytes: int, timeout_s: float
) -> AsyncGenerator[Download]:
    try:
        async with asyncio.timeout(timeout_s), _opened(uri, scheme, files, settings, max_bytes) as download:
            yield download
    except TimeoutError as error:
        raise Timeout(f"{_short(uri)} took longer than {timeout_s:g} s") from error


@asynccontextmanager
async def _opened(
    uri: str, scheme: str, files: Files, settings: Settings, max_bytes: int
) -> AsyncGenerator[Download]:
    rest = uri[len(scheme) + 1 :].removeprefix("//")
    match scheme:
        case "data":
            fetched = await asyncio.to_thread(egress.decode_data_url, uri, max_bytes)
            yield Download(fetched.url, fetched.content_type, fetched.charset, _one(fetched.content))
        case "files":
            bucket, _, key = rest.partition("/")
            file = await files.get(bucket, key)
            _check_size(uri, file.size, max_bytes)
            yield Download(uri, *_parsed_type(file.mime_type), files.read(file))
        case "file" | "lsfs":
            async with _opened_file(uri, scheme, rest, settings.file_root) as source:
                yield Download(uri, guess_type(uri), None, _read(source, uri, max_bytes))
        case "s3" | "gs":
            _check_object(uri, settings)
            async with _opened_object(uri) as (source, content_type):
                yield Download(uri, content_type, None, _read(source, uri, max_bytes))
        case _:
            known = ", ".join(f"{name}:" for name in SCHEMES)
            raise BadRequest(f"{_short(uri)} is of no kind that is read here: use one of {known}")


def guess_type(name: str) -> str:
    """The media type that a name's suffix tells; "" for none."""
    suffix = Path(name).suffix.lower()
    if suffix in _TYPES:
        return _TYPES[suffix]
    guessed, encoding = mimetypes.guess_type(name)
    return f"application/{encoding}" if encoding else guessed or ""


@asynccontextmanager
async def _opened_file(uri: str, scheme: str, rest: str, root: Path | None) -> AsyncGenerator[BinaryIO]:
    if root is None:
        raise BadRequest(
            f"this server reads no {scheme}:// files: its operator has to name the folder that it may read "
            "(STACK_FILE_ROOT), or upload the file and use its url"
        )
    source = await asyncio.to_thread(_open_below, root, scheme, unquote(rest), uri)
    try:
        yield source
    finally:
        source.close()


def _open_below(root: Path, scheme: str, path: str, uri: str) -> BinaryIO:
    """Open a regular file in the folder, whatever its path or a symlink in it says."""
    if scheme == "file":
        host, slash, path = path.partition("/")
        if host not in ("", "localhost"):
            raise BadRequest(f"{_short(uri)} names a file of another host: write file:///folder/name")
        path = slash + path
    else:
        path = path.lstrip("/")  # lsfs:// is relative to the folder
    missing = BadRequest(
        f"there is no file {_short(uri)} in the folder that this server reads (STACK_FILE_ROOT)"
    )
    try:
        root = root.resolve()
        # Not strict: what is outside gets one answer, whether it exists or not.
        found = (root / path).resolve()
        if not found.is_relative_to(root):
            raise missing
        descriptor = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: \0; RuntimeError: a ring of symlinks
        raise missing from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise missing
    return os.fdopen(descriptor, "rb")


def _check_object(uri: str, settings: Settings) -> None:
    """Whoever may name any object would read, with the server's credentials, all that the server may."""
    roots = [root.strip().rstrip("/") for root in settings.object_roots.split(",") if root.strip()]
    scheme, _, path = uri.partition("://")
    named = f"{scheme.lower()}://{path}"
    if ".." in path.split("/") or not any(named.startswith(f"{root}/") for root in roots):
        raise BadRequest(
            f"{_short(uri)} is not below a URL whose objects this server reads: its operator has to name one "
            "(STACK_OBJECT_ROOTS), or upload the file and use its url"
        )


@asynccontextmanager
async def _opened_object(uri: str) -> AsyncGenerator[tuple[Any, str]]:
    source, content_type = await asyncio.to_thread(_open_object, uri)
    try:
        yield source, content_type
    finally:
        await asyncio.to_thread(source.close)


def _open_object(uri: str) -> tuple[Any, str]:
    filesystem, path = open_filesystem(uri)
    with _kind_errors(uri):
        info = filesystem.info(path)
        if info.get("type") == "directory":
            raise FileNotFoundError
        content_type = str(info.get("ContentType") or info.get("contentType") or "")
        if content_type in ("", "binary/octet-stream", "application/octet-stream"):  # a store's word for any
            content_type = guess_type(path)
        return filesystem.open(path, "rb"), _parsed_type(content_type)[0]


async def _read(source: Any, uri: str, max_bytes: int) -> AsyncIterator[bytes]:
    """A blocking file's bytes."""
    total = 0
    while block := await asyncio.to_thread(_read_block, source, uri):
        total += len(block)
        _check_size(uri, total, max_bytes)
        yield block


def _read_block(source: Any, uri: str) -> bytes:
    with _kind_errors(uri):
        return bytes(source.read(BLOCK_BYTES))


async def _one(content: bytes) -> AsyncIterator[bytes]:
    yield content


@contextmanager
def _kind_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise BadRequest(f"there is nothing at {_short(uri)}") from error
    except PermissionError as error:
        raise BadRequest(f"the server may not read {_short(uri)}") from error
    except driver_errors() as error:
        raise UpstreamError(f"{_short(uri)} cannot be read: {type(error).__name__}") from error


def _check_size(uri: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise BadRequest(f"{_short(uri)} is larger than {max_bytes} bytes")


def _parsed_type(mime_type: str) -> tuple[str, str | None]:
    """Media type and charset of a Content-Type."""
    message = Message()
    message["content-type"] = mime_type
    return message.get_content_type() if mime_type else "", message.get_content_charset()


def _short(uri: str) -> str:
    """A URI for messages: queries often carry keys."""
    return repr(uri.partition("?")[0][:200])


def _split(url: str) -> tuple[tuple[str, str, int], str] | None:
    """(scheme, host, port) and path of an http URL; None for what is none."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        return None
    return (parts.scheme, parts.hostname or "", port), parts.path
