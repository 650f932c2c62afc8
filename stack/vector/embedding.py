"""Chunks and queries -> unit vectors of a vector database's embedding model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stack.engine.base import Priority
from stack.engine.embedding.vectors import Vectors
from stack.errors import BadRequest, NotFound
from stack.models.serving import Serving
from stack.schemas.content import InterleavedContent
from stack.schemas.inference import EmbeddingsRequest
from stack.schemas.vector_dbs import VectorDB
from stack.vector.rows import items_of


async def embed(
    serving: Serving,
    vector_db: VectorDB,
    contents: Sequence[InterleavedContent],
    task_type: Any,
    priority: Priority = Priority.INTERACTIVE,
) -> Vectors:
    """float32 [contents, dimension], unit length. A content with images is the mean of its parts.

    Raises BadRequest when the model gives vectors of another dimension, or cannot embed a content.
    """
    parts = [items_of(content) for content in contents]
    request = EmbeddingsRequest.model_construct(
        model_id=vector_db.embedding_model,
        contents=[item for items in parts for item in items],
        task_type=task_type,
        text_truncation="end",
        output_dimension=None,
    )
    try:
        model = await serving(vector_db.embedding_model, "embedding")
    except NotFound as error:
        raise BadRequest(
            f"the embedding model {vector_db.embedding_model!r} of vector database "
            f"{vector_db.identifier!r} is no longer registered: register it again"
        ) from error
    vectors = await model.vectors(request, priority, whole=True)
    if vectors.shape[1] != vector_db.embedding_dimension:
        raise BadRequest(
            f"the embedding model {vector_db.embedding_model!r} gives {vectors.shape[1]} dimensions, "
            f"vector database {vector_db.identifier!r} has {vector_db.embedding_dimension}"
        )
    vectors = _unit(vectors)
    if len(vectors) > len(parts):
        starts = np.cumsum([0, *(len(items) for items in parts[:-1])])
        vectors = _unit(np.add.reduceat(vectors, starts, axis=0))
    return vectors


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit
