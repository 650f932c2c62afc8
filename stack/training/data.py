"""What a worker learns from: the prepared token ids, and in which order they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Sampler

from stack.store.storage import Storage
from stack.training.prepare import manifest_path, shard_path

if TYPE_CHECKING:
    from datasets import Dataset

    from stack.training.plan import Plan


def open_split(plan: Plan, split: str, storage: Storage, folder: Path) -> Dataset:
    """Rows of token ids, mapped into memory; what a remote store has is copied to `folder` first."""
    import datasets

    datasets.disable_caching()  # what is derived from them stands in a temporary folder
    manifest = json.loads(asyncio.run(storage.read(manifest_path(plan, split))))
    paths = [shard_path(plan, split, number) for number in range(manifest["shards"])]
    files = asyncio.run(_local(storage, paths, folder))
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])


async def _local(storage: Storage, paths: list[str], folder: Path) -> list[Path]:
    files = []
    for path in paths:
        file = storage.local(path)
        if file is None:
            file = folder / path.replace("/", "-")
            file.write_bytes(await storage.read(path))
        files.append(file)
    return files


class EpochSampler(Sampler[int]):
    """Rows in an order that only the seed and the epoch decide, so that a resumed run sees the same."""

    def __init__(self, rows: int, *, shuffle: bool, seed: int, limit: int | None = None) -> None:
        """`limit`: rows of one epoch, another part of them in each when they are shuffled."""
        self._rows, self._shuffle, self._seed = rows, shuffle, seed
        self._length = rows if limit is None else min(limit, rows)
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        if not self._shuffle:
            return iter(range(self._length))
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        return iter(torch.randperm(self._rows, generator=generator)[: self._length].tolist())
