"""A document as a caller gives it -> its text and images: inline, or fetched from the URL that it names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from stack.errors import BadRequest, NotFound, StackError, Timeout, UpstreamError
from stack.files.files import Files
from stack.files.uris import canonical_uri, open_uri
from stack.rag.kinds import Kind, named_kind
from stack.rag.parse import MAX_TEXT_CHARS, Parser, Source, Text
from stack.schemas.common import URL
from stack.schemas.content import ImageContentItem, InterleavedContentItem, TextContentItem
from stack.schemas.tools import RAGDocument
from stack.settings import Settings

FETCH_TIMEOUT_S = 60.0

_URL = re.compile(r"(?:https?|files?|lsfs)://\S+|data:[\w.+-]+/[\w.+-][^,\s]*,\S*", re.IGNORECASE)
"""A string which as a whole is one of these is fetched. A text item is never taken for a URL.

The pattern takes linear time: a text of megabytes may begin as a data URL does.
"""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a document holds. `text` may be empty when there are images."""

    document: RAGDocument
    text: str
    title: str | None
    images: list[ImageContentItem] = field(default_factory=list)


class Loader:
    def __init__(self, settings: Settings, files: Files, parser: Parser) -> None:
        self._settings, self._files, self._parser = settings, files, parser

    async def load(self, document: RAGDocument) -> Loaded:
        """Fetch and parse. Raises BadRequest, UpstreamError or Timeout, which name the document."""
        try:
            return await self._load(document)
        except StackError as error:
            raise named(error, document.document_id) from error

    async def _load(self, document: RAGDocument) -> Loaded:
        if (url := url_of(document)) is not None:
            texts, images = [await self._fetch(url, document.mime_type)], []
        else:
            items = list(_items(document))
            texts = [
                await self._inline(item.text, document.mime_type)
                for item in items
                if isinstance(item, TextContentItem)
            ]
            images = [item for item in items if isinstance(item, ImageContentItem)]
        text = "\n\n".join(part.text for part in texts)
        if not text.strip() and not images:
            raise BadRequest("it has no text")
        if len(text) > MAX_TEXT_CHARS:
            raise BadRequest(f"it has more than {MAX_TEXT_CHARS} characters of text: split it")
        return Loaded(document, text, next((part.title for part in texts if part.title), None), images)

    async def _fetch(self, url: str, declared: str | None) -> Text:
        max_bytes = int(self._settings.max_document_mb * 2**20)
        async with open_uri(
            url, self._files, self._settings, max_bytes=max_bytes, timeout_s=FETCH_TIMEOUT_S
        ) as download:
            content = b"".join([chunk async for chunk in download.chunks])
        source = Source(content, declared, download.content_type, download.charset, download.url)
        return await self._parser.parse(source)

    async def _inline(self, text: str, declared: str | None) -> Text:
        if named_kind(declared) in (Kind.PDF, Kind.DOCX):
            raise BadRequest(
                f"text inside a request is no {declared}: give a data URL with base64, or a file's url"
            )
        return await self._parser.parse(Source(text.encode("utf-8", "replace"), declared, charset="utf-8"))


def url_of(document: RAGDocument) -> str | None:
    """The URL to fetch a document from; None when its content is inline."""
    content = document.content
    if isinstance(content, URL):
        return content.uri
    if isinstance(content, str) and _URL.fullmatch(content.strip()):
        return content.strip()
    return None


def with_own_url(document: RAGDocument, base_url: str, settings: Settings) -> RAGDocument:
    """The same document; a file of this server by a name that stays, whatever the server is called."""
    url = url_of(document)
    own = canonical_uri(url, base_url, settings) if url else url
    return document if own is None or own == url else document.model_copy(update={"content": URL(uri=own)})


def inline_chars(document: RAGDocument) -> int:
    """About how much of a document stands in the request itself."""
    content = document.content
    if isinstance(content, str):
        return len(content)
    if isinstance(content, URL):
        return len(content.uri)
    return sum(
        len(item.text) if isinstance(item, TextContentItem) else len(item.image.data or "")
        for item in _items(document)
    )


def named(error: StackError, document_id: str) -> StackError:
    """The error with the document that it is about. What the server lacks stays as it is."""
    text = f"document {document_id!r}: {error}"
    if isinstance(error, BadRequest | NotFound):
        return BadRequest(text)
    return type(error)(text) if type(error) in (UpstreamError, Timeout) else error


def _items(document: RAGDocument) -> Iterator[InterleavedContentItem]:
    content = document.content
    if isinstance(content, str):
        yield TextContentItem(text=content)
    elif isinstance(content, list):
        yield from content
    elif not isinstance(content, URL):
        yield content
