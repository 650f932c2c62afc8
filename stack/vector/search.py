"""One table's answers to a query: the nearest vectors, and the texts that share words with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from stack.vector.filters import to_sql
from stack.vector.params import QueryParams
from stack.vector.rows import READ_COLUMNS
from stack.vector.state import IndexState, Located

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.query import AsyncFTSQuery, AsyncVectorQuery
    from lancedb.table import AsyncTable
    from numpy.typing import NDArray

MAX_QUERY_TERMS = 256  # of the keyword leg: a longer text's first ones


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """A row that one of the two searches found. `row_id` holds until the table is compacted."""

    table_name: str
    id: str
    row_id: int
    score: float  # the search's own: cosine similarity, or BM25
    vector: NDArray[np.float32]  # the chunk's, unit length

    @property
    def key(self) -> tuple[str, str]:
        """The same for a row that several legs found."""
        return self.table_name, self.id


async def nearest(
    table: AsyncTable, located: Located, vector: NDArray[Any], depth: int, params: QueryParams
) -> list[Hit]:
    """Up to `depth` rows by cosine similarity, best first; `vector` has unit length."""
    query = with_index(table.query().nearest_to(vector).distance_type("l2"), located.index, params)
    if (where := condition(located, params)) is not None:
        query = query.where(where)
    found = await query.limit(depth).with_row_id().select(["id", "vector", "_distance"]).to_arrow()
    # Of unit vectors, the squared distance is 2 - 2 cos.
    scores = np.clip(1.0 - found["_distance"].to_numpy() / 2, -1.0, 1.0)
    return _hits(located, found, scores.tolist())


def with_index(query: AsyncVectorQuery, index: IndexState, params: QueryParams) -> AsyncVectorQuery:
    """The query as the index is to be searched."""
    if params.exact or index.kind == "flat":
        return query.bypass_vector_index()
    query = query.nprobes(index.nprobes)
    refine = params.refine or index.refine_factor
    return query.refine_factor(refine) if refine else query


async def sharing_words(
    table: AsyncTable, located: Located, text: str, depth: int, params: QueryParams
) -> list[Hit]:
    """Up to `depth` rows by BM25, best first; none when the query has no words."""
    from lancedb.query import MatchQuery

    words = [match[0] for match in islice(re.finditer(r"\w+", text), MAX_QUERY_TERMS)]
    if not words:
        return []
    match = MatchQuery(" ".join(words), "text")  # type: ignore[call-arg]  # mypy does not see the defaults
    query: AsyncFTSQuery = table.query().nearest_to_text(match)
    if (where := condition(located, params)) is not None:
        query = query.where(where)
    found = await query.limit(depth).with_row_id().select(["id", "vector", "_score"]).to_arrow()
    return _hits(located, found, found["_score"].to_pylist())


def _hits(located: Located, found: pa.Table, scores: list[float]) -> list[Hit]:
    dimension = located.vector_db.embedding_dimension
    vectors = found["vector"].combine_chunks().flatten().to_numpy().reshape(-1, dimension)
    ids, row_ids = found["id"].to_pylist(), found["_rowid"].to_pylist()
    return [Hit(located.table_name, *each) for each in zip(ids, row_ids, scores, vectors, strict=True)]


def condition(located: Located, params: QueryParams) -> str | None:
    """What a row must fulfil, in SQL."""
    parts = []
    if located.expires:
        parts.append(f"(expires_at IS NULL OR expires_at > {int(datetime.now(UTC).timestamp() * 1000)})")
    if params.filters is not None:
        parts.append(to_sql(params.filters))
    return " AND ".join(parts) or None


async def read(table: AsyncTable, hits: Sequence[Hit]) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of one table's hits by key; one that was moved or deleted meanwhile is left out."""
    rows = await table.take_row_ids([hit.row_id for hit in hits]).select(READ_COLUMNS).to_arrow()
    wanted = {hit.id: hit.key for hit in hits}
    return {wanted[row["id"]]: row for row in rows.to_pylist() if row["id"] in wanted}
