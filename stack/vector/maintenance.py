"""Keeps the tables of vector databases small and quick: expiry, compaction, indexes, old versions.

One process does so at a time for each table, one thing after the other, so compaction and indexing never
overlap. Inserts go on meanwhile; what collides with one is done in a later round. The tables are the truth:
what is kept in memory only spares work.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from stack.engine.base import Meter
from stack.errors import Overloaded
from stack.store.database import Database
from stack.store.lance import Lance, TableGone, lance_errors
from stack.vector import index, metrics
from stack.vector.state import PREFIX, IndexState, Located, VectorIndexes

if TYPE_CHECKING:
    from lancedb.table import AsyncTable

log = logging.getLogger(__name__)

KEEP_VERSIONS = timedelta(minutes=2)  # longer than any query takes
MAX_FRAGMENTS = 20
UNINDEXED_ROWS = 256, 2_000  # rows that the keyword index lacks cost 0.1 ms a page in each query
UNINDEXED_SHARE = 0.1  # of all rows, between these two numbers: bringing it up to date costs by all rows
MEASURE_GROWTH = 2.0  # times the rows when recall was last measured; measuring takes seconds of a CPU
MEASURE_AFTER_S = 3600.0  # of a table that goes on changing: its rows may all be others
_KINDS = {"flat": 0, "ivf_flat": 1, "ivf_sq": 2}


class Maintenance:
    def __init__(
        self,
        database: Database,
        lance: Lance,
        meter: Meter,
        sizes: index.Sizes = index.Sizes(),  # noqa: B008  # frozen
        keep_versions: timedelta = KEEP_VERSIONS,
    ) -> None:
        self._database, self._lance, self._meter = database, lance, meter
        self._indexes = VectorIndexes(database)
        self._sizes, self._keep = sizes, keep_versions
        self._rng = np.random.default_rng()
        self._seen: dict[str, int] = {}  # table -> the version that wants nothing
        self._clean_at: dict[str, datetime] = {}  # table -> when its old versions can go
        self._reported: set[str] = set()  # vector databases

    async def step(self) -> None:
        """Look at every table once."""
        await self._drop_orphans()
        found = await self._indexes.find_all()
        self._report_deleted({located.vector_db.identifier for located in found})
        for located in found:
            try:
                async with self._database.lock(f"{located.lock_name}-upkeep", timeout_s=0.1):
                    await self._maintain(located)
            except (TableGone, Overloaded):
                continue  # deleted, or another process is at it
            except (RuntimeError, OSError, ValueError) as error:  # what LanceDB raises
                if _is_collision(error):
                    log.info("%s was written meanwhile, again later", located.table_name)
                else:  # the other tables are none the worse
                    log.exception("%s cannot be maintained", located.table_name)

    async def _drop_orphans(self) -> None:
        """Tables of databases whose deletion was interrupted: a table's name is there before it."""
        names = [name for name in await self._lance.names() if name.startswith(PREFIX)]
        # Asked second: a table that another process makes meanwhile was claimed before.
        kept = await self._indexes.table_names() if names else set()
        for name in names:
            if name not in kept:
                log.info("dropping %s, which no vector database has", name)
                await self._lance.drop(name)

    async def _maintain(self, located: Located) -> None:
        name = located.table_name
        table = await self._lance.table(name)
        if located.expires:
            await self._expire(located, table)
        version = await table.version()
        clean_at = self._clean_at.setdefault(name, datetime.now(UTC))
        if self._seen.get(name) == version and clean_at > datetime.now(UTC):
            return
        with lance_errors():
            state = await self._tidied(located, table)
        if state != located.index:
            await self._indexes.set_state(located, state)
        self._report(located, state)
        if self._seen.get(name) != version:  # something was done, which left old versions
            self._clean_at[name] = datetime.now(UTC) + self._keep
        else:
            self._clean_at[name] = datetime.max.replace(tzinfo=UTC)
        self._seen[name] = await table.version()

    async def _expire(self, located: Located, table: AsyncTable) -> None:
        now = int(datetime.now(UTC).timestamp() * 1000)
        expired = f"expires_at <= {now}"
        if await table.query().where(expired).limit(1).select(["id"]).to_list():
            async with self._database.lock(located.lock_name):
                await table.delete(expired)

    async def _tidied(self, located: Located, table: AsyncTable) -> IndexState:
        """Compact, index and measure, as far as the table wants it; its new state."""
        stats: Any = await table.stats()
        rows, state = stats["num_rows"], located.index
        if await self._wants_compaction(located, table, stats):
            await table.optimize(cleanup_older_than=self._keep)
        if index.needs_building(state, rows, self._sizes):
            log.info("indexing %s, %d rows", located.table_name, rows)
            state = await index.build(table, rows, self._sizes)
        if state.trained_rows and _wants_measuring(state, rows):
            state = await index.tuned(table, state, rows, self._rng)
            if state.kind == "flat":
                log.warning("%s: its index finds too little, so it is not used", located.table_name)
        stats = await table.stats()
        fragments = stats["fragment_stats"]["num_fragments"]
        return replace(state, rows=rows, fragments=fragments, total_bytes=stats["total_bytes"])

    async def _wants_compaction(self, located: Located, table: AsyncTable, stats: Any) -> bool:
        if self._clean_at[located.table_name] <= datetime.now(UTC):
            return True
        if stats["fragment_stats"]["num_small_fragments"] > MAX_FRAGMENTS:
            return True
        words = await table.index_stats("text")
        fewest, most = UNINDEXED_ROWS
        bearable = min(max(UNINDEXED_SHARE * stats["num_rows"], fewest), most)
        return words is not None and (words.num_unindexed_rows or 0) > bearable

    def _report(self, located: Located, state: IndexState) -> None:
        self._reported.add(located.vector_db.identifier)
        meter = self._meter.labelled(vector_db_id=located.vector_db.identifier)
        meter.gauge(metrics.ROWS, state.rows)
        meter.gauge(metrics.FRAGMENTS, state.fragments)
        meter.gauge(metrics.BYTES, state.total_bytes)
        meter.gauge(metrics.INDEX, _KINDS[state.kind])
        meter.gauge(metrics.RECALL, 1.0 if state.recall is None else state.recall)

    def _report_deleted(self, kept: set[str]) -> None:
        """Nothing of what is gone: a series that was reported once cannot be taken back from Ray."""
        for identifier in self._reported - kept:
            for name in (metrics.ROWS, metrics.FRAGMENTS, metrics.BYTES, metrics.INDEX):
                self._meter.labelled(vector_db_id=identifier).gauge(name, 0)
        self._reported &= kept


def _wants_measuring(state: IndexState, rows: int) -> bool:
    """Whether the table, which has changed, may be another by now than the one that was measured."""
    grown = rows > state.measured_rows * MEASURE_GROWTH or rows * MEASURE_GROWTH < state.measured_rows
    return grown or time.time() - state.measured_at > MEASURE_AFTER_S


def _is_collision(error: Exception) -> bool:
    text = str(error).lower()
    return "conflict" in text or "not found" in text
