"""Vectors of small tables in memory: comparing them all is then one product of matrix and vector.

LanceDB reads and decodes all vectors for each exact search, 16 ms for 10,000; in memory it takes one. What is
kept belongs to a version of the table: after a write it is read again, once a second query asks for the same
version, so that a table between two writes costs nothing.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stack.vector.search import Hit

if TYPE_CHECKING:
    from lancedb.table import AsyncTable

MAX_BYTES = 256 << 20  # of all tables together
MAX_ROWS = 20_000  # of one table


@dataclass(slots=True)
class _Kept:
    version: int
    vectors: NDArray[np.float32] | None = None  # [rows, dimension]; None until a second query asks
    ids: list[str] | None = None
    row_ids: list[int] | None = None

    @property
    def bytes(self) -> int:
        return 0 if self.vectors is None else self.vectors.nbytes


class FlatVectors:
    """The process's copies. Belongs to one event loop."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._reading: dict[str, asyncio.Lock] = {}

    async def nearest(
        self, table: AsyncTable, table_name: str, vector: NDArray[Any], depth: int
    ) -> list[Hit] | None:
        """Up to `depth` rows by cosine similarity, best first; None when they are not in memory."""
        version = await table.version()
        kept = self._kept.get(table_name)
        if kept is None or kept.version != version:
            self._kept[table_name] = _Kept(version)
            return None
        self._kept.move_to_end(table_name)
        if kept.vectors is None and not await self._read(table, table_name, kept, len(vector)):
            return None
        return await asyncio.to_thread(_nearest, kept, table_name, vector, depth)

    async def _read(self, table: AsyncTable, table_name: str, kept: _Kept, dimension: int) -> bool:
        async with self._reading.setdefault(table_name, asyncio.Lock()):
            if kept.vectors is None:
                rows, row_bytes = await table.count_rows(), dimension * 4
                if rows > MAX_ROWS or rows * row_bytes > self._max_bytes:
                    return False
                found = await table.query().with_row_id().select(["id", "vector"]).to_arrow()
                if await table.version() != kept.version:
                    return False
                flat = found["vector"].combine_chunks().flatten().to_numpy()
                kept.ids, kept.row_ids = found["id"].to_pylist(), found["_rowid"].to_pylist()
                kept.vectors = flat.reshape(len(found), -1) if len(found) else np.empty((0, 1), np.float32)
                self._make_room()
        return True

    def _make_room(self) -> None:
        while sum(kept.bytes for kept in self._kept.values()) > self._max_bytes:
            name, _ = self._kept.popitem(last=False)
            self._reading.pop(name, None)


def _nearest(kept: _Kept, table_name: str, vector: NDArray[Any], depth: int) -> list[Hit]:
    assert kept.vectors is not None
    assert kept.ids is not None
    assert kept.row_ids is not None
    if not len(kept.vectors):
        return []
    scores = kept.vectors @ vector
    few = np.argpartition(-scores, depth)[:depth] if depth < len(scores) else np.arange(len(scores))
    best = few[np.argsort(-scores[few], kind="stable")]
    return [
        Hit(table_name, kept.ids[i], kept.row_ids[i], float(np.clip(scores[i], -1, 1)), kept.vectors[i])
        for i in best
    ]
