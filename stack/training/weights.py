"""The small files and the headers of a model's weights, where they can be read at once: nothing is fetched.

Nothing heavy is imported: submissions look here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stack.errors import BadRequest
from stack.models import sources
from stack.models.folders import Facts, Folder, facts
from stack.settings import Settings
from stack.store.storage import Storage

STORAGE = "storage://"
MAX_HEADER_BYTES = 100 << 20  # as the safetensors library has it
_LARGE = ("tokenizer.json", "vocab.json", "added_tokens.json")  # nothing here is learned from these

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's folder. `read` gives a file's bytes from a start to before an end; None: to the last."""

    where: str
    names: frozenset[str]
    read: Callable[[str, int, int | None], Awaitable[bytes]]

    async def json(self, name: str) -> dict[str, Any]:
        """A JSON object; an empty one when there is no such file. Raises BadRequest."""
        if name not in self.names:
            return {}
        try:
            content = json.loads(await self.read(name, 0, None))
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"{self.where}: {name} is not JSON") from error
        if not isinstance(content, dict):
            raise BadRequest(f"{self.where}: {name} is not a JSON object")
        return content

    async def shapes(self) -> Shapes:
        """The tensors of all safetensors by name. Raises BadRequest for a damaged file."""
        found: Shapes = {}
        for name in sorted(name for name in self.names if name.endswith(".safetensors") and "/" not in name):
            length = _header_length(await self.read(name, 0, 8), name)
            found |= _shapes(await self.read(name, 8, 8 + length), name)
        return found

    async def facts(self) -> Facts:
        """Raises BadRequest for what cannot be served."""
        small = [name for name in self.names if name.endswith(".json") and name not in _LARGE]
        contents = {name: await self.read(name, 0, None) for name in small}
        return await asyncio.to_thread(facts, Folder(self.where, self.names, contents.__getitem__))


async def open_weights(source: str, settings: Settings, storage: Storage) -> Weights | None:
    """None for what has to be fetched first."""
    if source.startswith(STORAGE):
        prefix = sources.StorageSource.parse(source).path
        names = [path.removeprefix(f"{prefix}/") for path in await storage.find(prefix)]
        return Weights(
            source, frozenset(names), lambda name, start, end: storage.read(f"{prefix}/{name}", start, end)
        )
    return await asyncio.to_thread(_local, source, settings)


def _local(source: str, settings: Settings) -> Weights | None:
    folder = sources.local_folder(source, settings)
    if folder is None or not _is_complete(Folder.local(folder)):
        return None

    async def read(name: str, start: int, end: int | None) -> bytes:
        return await asyncio.to_thread(_read, folder / name, start, end)

    return Weights(source, Folder.local(folder).names, read)


def _is_complete(folder: Folder) -> bool:
    """A look at a hub's model leaves its configuration alone in the cache, a broken download some weights."""
    indexes = [name for name in folder.names if name.endswith("safetensors.index.json")]
    shards = {shard for name in indexes for shard in folder.json(name).get("weight_map", {}).values()}
    return any(name.endswith(".safetensors") for name in folder.names) and shards <= folder.names


def _read(path: Path, start: int, end: int | None) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(-1 if end is None else end - start)


def _header_length(first: bytes, name: str) -> int:
    """From the first 8 bytes of a safetensors file."""
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > MAX_HEADER_BYTES:
        raise BadRequest(f"{name} is not a safetensors file")
    return length


def _shapes(header: bytes, name: str) -> Shapes:
    try:
        content: dict[str, Any] = json.loads(header)
        return {key: tuple(entry["shape"]) for key, entry in content.items() if key != "__metadata__"}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise BadRequest(f"{name} is not a safetensors file") from error
