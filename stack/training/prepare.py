"""A dataset's rows -> token ids in Arrow files in the storage, once for a job, on Ray Data.

Rows are read, tokenized and written shard by shard, on whatever nodes have room; nobody holds them all. What
says that a dataset is prepared is its manifest, written last.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
from pydantic_core import from_json

from stack.datasets.tables import RowTables
from stack.errors import BadRequest, StackError
from stack.models.sources import fetch
from stack.settings import Settings, get_settings
from stack.store.lance import open_lance
from stack.store.storage import Lost, Storage, open_storage
from stack.training.plan import Data, Plan
from stack.training.rows import conversation, pair
from stack.training.tokens import IGNORED, ChatTokens

if TYPE_CHECKING:
    from stack.jobs.context import JobContext

SHARD_ROWS = 2048
INLINE_ROWS = 2 * SHARD_ROWS
"""Up to so many rows are tokenized in the job's own process: Ray Data's workers take longer to start."""

_CPUS = 0.01  # that a worker reserves: on a laptop the models have nearly all
_IDS = pa.list_(pa.int32())
SCHEMAS = {
    "sft": pa.schema({"input_ids": _IDS, "labels": _IDS}),
    "dpo": pa.schema({"prompt_ids": _IDS, "chosen_ids": _IDS, "rejected_ids": _IDS}),
}


class Counts(NamedTuple):
    """What became of some rows."""

    rows: int = 0  # that are kept
    dropped: int = 0  # nothing to learn is left of them once they are cut
    tokens: int = 0
    learned: int = 0  # tokens with a label


def manifest_path(plan: Plan, split: str) -> str:
    return f"{plan.work_folder}/{split}.json"


def shard_path(plan: Plan, split: str, number: int) -> str:
    return f"{plan.work_folder}/{split}-{number:06}.arrow"


async def prepare(plan: Plan, split: str, data: Data, context: JobContext, storage: Storage) -> Counts:
    """Tokenize a dataset, unless an earlier attempt has. Raises BadRequest for a row that cannot be used."""
    try:
        return Counts(**json.loads(await storage.read(manifest_path(plan, split)))["counts"])
    except Lost:
        pass
    shards = [(n, start) for n, start in enumerate(range(0, data.rows, SHARD_ROWS))]
    total = Counts()
    made = (
        _inline(plan, split, data, shards) if data.rows <= INLINE_ROWS else _on_ray(plan, split, data, shards)
    )
    done = 0
    while (counts := await asyncio.to_thread(next, made, None)) is not None:
        total = Counts(*map(sum, zip(total, counts, strict=True)))
        done = min(done + SHARD_ROWS, data.rows)
        context.progress(phase="preparing", done=done, total=data.rows, unit="rows")
    if total.rows == 0:
        raise BadRequest(f"dataset {data.dataset_id!r} has no row from which anything can be learned")
    manifest = {"shards": len(shards), "counts": total._asdict()}
    await storage.write(manifest_path(plan, split), json.dumps(manifest).encode())
    return total


def _inline(plan: Plan, split: str, data: Data, shards: list[tuple[int, int]]) -> Iterator[Counts]:
    tokenizer = Tokenizer(plan, split, data)
    try:
        for number, start in shards:
            yield tokenizer.shard(number, start)
    finally:
        tokenizer.close()


def _on_ray(plan: Plan, split: str, data: Data, shards: list[tuple[int, int]]) -> Iterator[Counts]:
    import ray.data

    from stack.jobs.cluster import cluster_cpus

    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"number": number, "start": start} for number, start in shards]
    workers = max(1, min(len(rows), cluster_cpus() // 2))
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        Tokenizer,  # type: ignore[arg-type]  # a class is an actor's, see Ray Data
        fn_constructor_args=(plan, split, data),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=_CPUS,
    )
    for row in made.iter_rows():
        if error := row.pop("error", None):
            raise BadRequest(error)
        yield Counts(**row)


class Tokenizer:
    """Reads, tokenizes and writes shards; has stores and an event loop of its own."""

    def __init__(self, plan: Plan, split: str, data: Data) -> None:
        self._plan, self._split, self._data = plan, split, data
        self._settings = get_settings()
        self._tokens = ChatTokens(weights_folder(plan, self._settings), plan.max_tokens)
        self._loop = asyncio.new_event_loop()
        self._open = AsyncExitStack()
        self._loop.run_until_complete(self._start())

    async def _start(self) -> None:
        self._storage = await self._open.enter_async_context(open_storage(self._settings))
        lance = await self._open.enter_async_context(open_lance(self._settings))
        self._tables = RowTables(lance)

    def close(self) -> None:
        self._loop.run_until_complete(self._open.aclose())
        self._loop.close()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """For Ray Data, which wraps what is raised: a row that cannot be used is told by its text."""
        try:
            return self.shard(row["number"], row["start"])._asdict()
        except BadRequest as error:
            return {"error": str(error), **Counts()._asdict()}

    def shard(self, number: int, start: int) -> Counts:
        return self._loop.run_until_complete(self._shard(number, start))

    async def _shard(self, number: int, start: int) -> Counts:
        kept: list[tuple[list[int], ...]] = []
        dropped = tokens = learned = 0
        end = min(start + SHARD_ROWS, self._data.rows)
        while start < end:
            page = await self._tables.page(self._data.table, start, end - start)
            if not page.rows:
                raise StackError(f"dataset {self._data.dataset_id!r} is gone: it was deleted meanwhile")
            for index, text in enumerate(page.rows, start):
                columns, count = self._tokenize(from_json(text), index)
                if count:
                    kept.append(columns)
                    tokens, learned = tokens + sum(map(len, columns[:1])), learned + count
                else:
                    dropped += 1
            start += len(page.rows)
        path = shard_path(self._plan, self._split, number)
        await self._storage.write(path, _arrow(SCHEMAS[self._plan.method], kept))
        return Counts(len(kept), dropped, tokens, learned)

    def _tokenize(self, row: dict[str, Any], index: int) -> tuple[tuple[list[int], ...], int]:
        """A row's columns, and how many tokens of it are learned."""
        config = self._plan.training.data_config
        if self._plan.method == "sft":
            learns = conversation(row, index, config.data_format)
            ids = self._tokens.conversation(learns, config.train_on_input)
            return ids, sum(label != IGNORED for label in ids.labels)
        pairs = self._tokens.pair(pair(row, index))
        return pairs, min(len(pairs.chosen_ids), len(pairs.rejected_ids))


def weights_folder(plan: Plan, settings: Settings) -> Path:
    """The base model's folder on this node, fetched once."""
    return fetch(plan.start.source, settings.model_cache, storage=settings.storage)


def _arrow(schema: pa.Schema, rows: list[tuple[list[int], ...]]) -> bytes:
    """An Arrow stream, which readers map into memory."""
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    table = pa.table([pa.array(list(c), _IDS) for c in columns], schema=schema)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(table)
    return sink.getvalue()
