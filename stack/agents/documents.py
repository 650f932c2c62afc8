"""The documents of a turn: into a vector database when the agent searches, into the code interpreter's folder
when it runs code, else into the message itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import mimetypes
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from stack.agents.files import MAX_BYTES, SessionFiles
from stack.agents.toolbox import CODE_GROUP, SEARCH_GROUP, Toolbox
from stack.egress import read_image
from stack.errors import BadRequest, NotFound
from stack.files.files import Files
from stack.files.uris import canonical_uri, open_uri
from stack.rag.load import named, url_of
from stack.rag.rag import Rag
from stack.schemas.agents import Document, InputMessage
from stack.schemas.common import URL
from stack.schemas.content import (
    ImageContentItem,
    InterleavedContent,
    InterleavedContentItem,
    TextContentItem,
)
from stack.schemas.messages import UserMessage
from stack.schemas.tools import RAGDocument
from stack.schemas.vector_dbs import RegisterVectorDbRequest
from stack.settings import Settings
from stack.store.model_status import ModelStatuses
from stack.vector.databases import VectorDatabases

MAX_DOCUMENTS = 64
MAX_INLINE_CHARS = 200_000
CHUNK_TOKENS = 256


@dataclass(slots=True)
class Placed:
    """Where a turn's documents went."""

    messages: list[InputMessage]
    memory: str | None = None  # the vector database that has them
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # name -> mime type, content


class Documents:
    def __init__(
        self,
        settings: Settings,
        files: Files,
        rag: Rag,
        vector_dbs: VectorDatabases,
        statuses: ModelStatuses,
        session_files: SessionFiles,
    ) -> None:
        self._settings, self._files, self._rag = settings, files, rag
        self._vector_dbs, self._statuses, self._session_files = vector_dbs, statuses, session_files

    async def place(
        self, session_id: str, messages: Sequence[InputMessage], documents: Sequence[Document], tools: Toolbox
    ) -> Placed:
        """Raises BadRequest, UpstreamError or Timeout, which name the document."""
        placed = Placed(list(messages))
        if not documents:
            return placed
        if len(documents) > MAX_DOCUMENTS:
            raise BadRequest(f"a turn has at most {MAX_DOCUMENTS} documents, not {len(documents)}")
        _last_user_message(messages)
        named_documents = _named(documents)
        searches, runs_code = tools.has_group(SEARCH_GROUP), tools.has_group(CODE_GROUP)
        if searches:
            placed.memory = await self._index(session_id, named_documents)
        if runs_code:
            await self._put_into_folder(session_id, named_documents, placed)
        if not searches and not runs_code:
            await self._put_inline(named_documents, placed)
        return placed

    async def memory_of(self, session_id: str) -> str | None:
        """The vector database with documents of the session's earlier turns, if there is one."""
        try:
            return (await self._vector_dbs.get(memory_id(session_id))).identifier
        except NotFound:
            return None

    async def forget(self, session_id: str) -> None:
        """Of a session that is deleted."""
        if await self.memory_of(session_id) is not None:
            with contextlib.suppress(NotFound):  # somebody else did
                await self._vector_dbs.delete(memory_id(session_id))

    async def _index(self, session_id: str, documents: Sequence[RAGDocument]) -> str:
        vector_db_id = await self.memory_of(session_id)
        if vector_db_id is None:
            vector_db_id = memory_id(session_id)
            model = await self._embedding_model()
            request = RegisterVectorDbRequest(vector_db_id=vector_db_id, embedding_model=model)
            await self._vector_dbs.register(request)
        await self._rag.ingest.insert(vector_db_id, list(map(_unmistakable, documents)), CHUNK_TOKENS)
        return vector_db_id

    async def _embedding_model(self) -> str:
        found = [
            model.identifier
            for model, status in await self._statuses.find_all()
            if model.model_type == "embedding" and (status is None or status.state == "ready")
        ]
        if not found:
            raise BadRequest("documents are searched with an embedding model: register one")
        return found[0]

    async def _put_into_folder(
        self, session_id: str, documents: Sequence[RAGDocument], placed: Placed
    ) -> None:
        for document in documents:
            try:
                content = await self._content(document)
            except BadRequest as error:
                raise named(error, document.document_id) from error
            placed.files[document.document_id] = document.mime_type or "text/plain", content
        await self._session_files.write(session_id, placed.files)
        lines = [f"- {name} ({kind}, {len(data)} bytes)" for name, (kind, data) in placed.files.items()]
        _add_context(placed, ["Files in the code interpreter's working folder:\n" + "\n".join(lines)])

    async def _content(self, document: RAGDocument) -> bytes:
        if (url := url_of(document)) is not None:
            async with open_uri(
                url, self._files, self._settings, max_bytes=MAX_BYTES, timeout_s=60
            ) as download:
                return b"".join([chunk async for chunk in download.chunks])
        content = document.content
        items = [content] if not isinstance(content, list) else content
        parts = [
            await read_image(item.image) if isinstance(item, ImageContentItem) else _text(item).encode()
            for item in items
        ]
        return b"\n".join(parts)

    async def _put_inline(self, documents: Sequence[RAGDocument], placed: Placed) -> None:
        context: list[InterleavedContentItem | str] = []
        for document in documents:
            loaded = await self._rag.ingest.loader.load(document)
            if loaded.text:
                context.append(f"Document {document.document_id}:\n{loaded.text}")
            context += loaded.images
        size = sum(len(part) for part in context if isinstance(part, str))
        if size > MAX_INLINE_CHARS:
            raise BadRequest(
                f"the documents have {size} characters, and a message takes {MAX_INLINE_CHARS}: give the "
                f"agent {SEARCH_GROUP} to search them, or {CODE_GROUP} to read them as files"
            )
        _add_context(placed, context)


def with_own_urls(documents: Sequence[Document], base_url: str, settings: Settings) -> list[Document]:
    """The same; files of this server by names that stay, whatever the server is called."""
    found = []
    for document in documents:
        content = document.content
        if isinstance(content, URL):
            content = URL(uri=canonical_uri(content.uri, base_url, settings))
        found.append(document.model_copy(update={"content": content}))
    return found


def memory_id(session_id: str) -> str:
    return f"session-{session_id}"


def _named(documents: Sequence[Document]) -> list[RAGDocument]:
    """With names of their own: the last part of a URL, or a number."""
    found: dict[str, RAGDocument] = {}
    for number, document in enumerate(documents, start=1):
        unnamed = RAGDocument(
            document_id="document",
            content=document.content,
            mime_type=document.mime_type or None,
            metadata={},
        )
        name = _file_name(url_of(unnamed), document.mime_type, number)
        while name in found:
            name = f"{number}-{name}"
        found[name] = unnamed.model_copy(update={"document_id": name})
    return list(found.values())


def _unmistakable(document: RAGDocument) -> RAGDocument:
    """With a name that other documents of the session do not have, however often turns count from one."""
    digest = hashlib.sha256(document.model_dump_json().encode()).hexdigest()[:8]
    return document.model_copy(update={"document_id": f"{digest}-{document.document_id}"})


def _file_name(url: str | None, mime_type: str, number: int) -> str:
    ending = mimetypes.guess_extension(mime_type.partition(";")[0].strip()) or ".txt"
    if url is not None and not url.startswith("data:"):
        base = posixpath.basename(unquote(urlsplit(url).path))
        name = "".join(char for char in base if char.isalnum() or char in "._-").lstrip(".-")[-100:]
        if name:
            return name if "." in name else name + ending
    return f"document-{number}{ending}"


def _last_user_message(messages: Sequence[InputMessage]) -> UserMessage:
    for message in reversed(messages):
        if isinstance(message, UserMessage):
            return message
    raise BadRequest("documents come with a message of the user")


def _add_context(placed: Placed, parts: Sequence[InterleavedContentItem | str]) -> None:
    """Append to the context of the last user message."""
    last = _last_user_message(placed.messages)
    items = [TextContentItem(text=part) if isinstance(part, str) else part for part in parts]
    before = last.context
    if before is not None:
        own = [TextContentItem(text=before)] if isinstance(before, str) else before
        items = [*(own if isinstance(own, list) else [own]), *items]
    context: InterleavedContent = items
    if all(isinstance(item, TextContentItem) for item in items):
        context = "\n\n".join(item.text for item in items if isinstance(item, TextContentItem))
    position = max(i for i, message in enumerate(placed.messages) if message is last)
    placed.messages[position] = last.model_copy(update={"context": context})


def _text(item: object) -> str:
    return item.text if isinstance(item, TextContentItem) else str(item)
