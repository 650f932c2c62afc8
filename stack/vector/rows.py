"""Chunks as rows of a LanceDB table, and back.

| column | what |
| --- | --- |
| id | what an insert replaces: see `identity` |
| document_id | `metadata.document_id`, where it is a string |
| text | the text of the content: what the keyword index reads |
| content | the content as JSON, where it is more than a plain text |
| metadata | the metadata as JSON, exactly as it came |
| attributes | the metadata again, as LanceDB's binary JSON: what filters read |
| expires_at | milliseconds since 1970, null: never |
| vector | float32 [dimension], unit length |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic_core import from_json, to_json

from stack.errors import BadRequest
from stack.schemas.common import JsonObject
from stack.schemas.content import ImageContentItem, InterleavedContent, TextContentItem
from stack.schemas.vector_io import Chunk

if TYPE_CHECKING:
    import pyarrow as pa

    from stack.engine.embedding.vectors import Vectors

COMPRESSED = {"lance-encoding:compression": "zstd"}
READ_COLUMNS = ["id", "text", "content", "metadata"]


def schema(dimension: int) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("document_id", pa.string()),
            pa.field("text", pa.string(), nullable=False, metadata=COMPRESSED),
            pa.field("content", pa.string(), metadata=COMPRESSED),
            pa.field("metadata", pa.string(), nullable=False, metadata=COMPRESSED),
            pa.field("attributes", pa.json_()),
            pa.field("expires_at", pa.int64()),
            pa.field("vector", pa.list_(pa.float32(), dimension), nullable=False),
        ]
    )


def items_of(content: InterleavedContent) -> list[TextContentItem | ImageContentItem]:
    """Texts joined to one, in front of the images."""
    if isinstance(content, str):
        return [TextContentItem(text=content)]
    items = content if isinstance(content, list) else [content]
    text, images = text_of(content), [item for item in items if isinstance(item, ImageContentItem)]
    return [*([TextContentItem(text=text)] if text or not images else []), *images]


def text_of(content: InterleavedContent) -> str:
    if isinstance(content, str):
        return content
    items = content if isinstance(content, list) else [content]
    return "\n".join(item.text for item in items if isinstance(item, TextContentItem))


def document_of(chunk: Chunk) -> str | None:
    """The document that a chunk says it is of."""
    document_id = chunk.metadata.get("document_id")
    return document_id if isinstance(document_id, str) and document_id else None


def chunk_id_of(chunk: Chunk) -> str | None:
    """The chunk's own name, where its metadata has one."""
    chunk_id = chunk.metadata.get("chunk_id")
    return chunk_id if isinstance(chunk_id, str) and chunk_id else None


def identity(chunk: Chunk) -> str:
    """Equal for what replaces each other: the chunk_id in the document, else what the chunk says."""
    named = chunk_id_of(chunk)
    parts = [document_of(chunk), named] if named else [to_json(chunk.content).decode(), chunk.metadata]
    return hashlib.sha256(json.dumps([bool(named), parts], sort_keys=True).encode()).hexdigest()[:32]


def to_table(chunks: Sequence[Chunk], vectors: Vectors, expires_at: int | None) -> pa.Table:
    """Rows in the order of the chunks; of chunks with one identity, the last."""
    import pyarrow as pa

    last = {identity(chunk): index for index, chunk in enumerate(chunks)}
    kept = sorted(last.values())
    rows = [chunks[index] for index in kept]
    metadata = [dump(chunk.metadata) for chunk in rows]
    unit = np.ascontiguousarray(vectors[kept], np.float32)
    attributes = pa.array(metadata, pa.string())
    columns: dict[str, Any] = {
        "id": [identity(chunk) for chunk in rows],
        "document_id": [document_of(chunk) for chunk in rows],
        "text": [text_of(chunk.content) for chunk in rows],
        "content": [None if isinstance(c.content, str) else to_json(c.content).decode() for c in rows],
        "metadata": metadata,
        "attributes": pa.ExtensionArray.from_storage(pa.json_(), attributes),
        "expires_at": pa.array([expires_at] * len(rows), pa.int64()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(unit.reshape(-1)), unit.shape[1]),
    }
    return pa.table(columns, schema=schema(unit.shape[1]))


def dump(metadata: JsonObject) -> str:
    """JSON as it came: the order of keys, big integers and all characters are kept."""
    try:
        return json.dumps(metadata, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise BadRequest(f"a chunk's metadata cannot be kept: {error}") from error


def to_chunk(row: dict[str, Any]) -> Chunk:
    """A row with READ_COLUMNS."""
    content = row["text"] if row["content"] is None else from_json(row["content"])
    return Chunk(content=content, metadata=json.loads(row["metadata"]))
