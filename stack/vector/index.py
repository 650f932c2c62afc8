"""Which vector index a table should have, and how it must be searched to find what exact search finds.

Up to 20,000 rows comparing all vectors is quick. Then inverted lists (IVF): a query looks into `nprobes` of
sqrt(rows) partitions. From 50,000 rows on, the index's copy of the vectors is quantised to a byte a number
(SQ), a quarter of the disk, and the best candidates are compared again with the vectors themselves.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stack.vector.params import QueryParams
from stack.vector.search import with_index
from stack.vector.state import IndexKind, IndexState

if TYPE_CHECKING:
    from lancedb.table import AsyncTable

NAME = "vector"  # of the index
WANTED_RECALL = 0.97  # when nprobes is chosen
LEAST_RECALL = 0.95  # below it, every vector is compared
K = 10
SAMPLES = 32
NOISE = 1.0  # a query is a chunk's vector and noise of that length: 0.7 similar, as questions are to answers
REFINE = 4
GROWTH = 4.0  # times the rows at training, after which the partitions are made anew


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows from which an index is of a kind."""

    indexed: int = 20_000
    quantised: int = 50_000

    def kind(self, rows: int) -> IndexKind:
        if rows < self.indexed:
            return "flat"
        return "ivf_flat" if rows < self.quantised else "ivf_sq"


def needs_building(state: IndexState, rows: int, sizes: Sizes) -> bool:
    """Whether the index is of another kind than the rows want, or its partitions are of far fewer rows."""
    wanted = sizes.kind(rows)
    if wanted == "flat":
        return False  # an index that has shrunk below the limit is no harm
    built = state.trained_rows > 0
    return (
        not built or rows > GROWTH * state.trained_rows or (wanted == "ivf_sq" and state.kind == "ivf_flat")
    )


async def build(table: AsyncTable, rows: int, sizes: Sizes) -> IndexState:
    """Make the index, replacing one that is there; minutes at millions of rows."""
    from lancedb.index import IvfFlat, IvfSq

    kind = sizes.kind(rows)
    partitions = max(1, round(rows**0.5))
    kinds: dict[IndexKind, Any] = {"ivf_flat": IvfFlat, "ivf_sq": IvfSq}
    config = kinds[kind](distance_type="l2", num_partitions=partitions)
    await table.create_index("vector", config=config, name=NAME, replace=True)
    refine = REFINE if kind == "ivf_sq" else 0
    return IndexState(kind=kind, nprobes=partitions, refine_factor=refine, trained_rows=rows)


async def tuned(table: AsyncTable, state: IndexState, rows: int, rng: np.random.Generator) -> IndexState:
    """The state with the fewest nprobes that find enough, and the recall that was measured with them."""
    partitions = max(1, round(state.trained_rows**0.5))
    state = replace(state, measured_rows=rows, measured_at=time.time())
    queries = await sample_queries(table, rows, rng)
    exact = [await _distances(table, query, state, exact=True) for query in queries]
    for share in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
        state = replace(state, nprobes=max(1, round(share * partitions)))
        found = [await _distances(table, query, state) for query in queries]
        state = replace(state, recall=recall(exact, found))
        if state.recall is not None and state.recall >= WANTED_RECALL:
            return state
    if state.recall is not None and state.recall < LEAST_RECALL:
        return replace(state, kind="flat", nprobes=0, recall=1.0)
    return state


async def sample_queries(table: AsyncTable, rows: int, rng: np.random.Generator) -> list[NDArray[np.float32]]:
    """Unit vectors near those of some rows: what is asked is like what is stored, and not the same."""
    if rows == 0:  # all have expired
        return []
    offsets = sorted(int(i) for i in rng.choice(rows, size=min(SAMPLES, rows), replace=False))
    found = await table.take_offsets(offsets).select(["vector"]).to_arrow()
    vectors = np.array(found["vector"].to_pylist(), np.float32).reshape(len(found), -1)
    noise = rng.normal(size=vectors.shape)
    noise *= NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
    queries = vectors + noise
    unit = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
    return list(unit.astype(np.float32))


def recall(exact: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]]) -> float:
    """recall@K by distance, so that of equally near rows either will do."""
    shares = [
        float((near[:K] <= best[:K].max() + 1e-5).sum()) / min(K, len(best))
        for best, near in zip(exact, found, strict=True)
        if len(best)
    ]
    return sum(shares) / len(shares) if shares else 1.0


async def _distances(
    table: AsyncTable, query: NDArray[np.float32], state: IndexState, exact: bool = False
) -> NDArray[Any]:
    nearest = table.query().nearest_to(query).distance_type("l2")
    nearest = with_index(nearest, state, QueryParams(exact=exact))
    found = await nearest.limit(K).select(["_distance"]).to_arrow()
    distances: NDArray[Any] = found["_distance"].to_numpy()
    return distances
