"""Folders in object stores, s3://… and gs://…, through fsspec and the credentials of the environment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from stack.errors import BadRequest, UpstreamError
from stack.models.cache import Progress
from stack.models.hub import FILES
from stack.store.filesystems import driver_errors, open_filesystem


class Bucket:
    """One folder of an object store, or one .gguf file in it."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.fs, self.root = open_filesystem(self.url)

    def files(self) -> dict[str, dict[str, Any]]:
        """Relative names of the files that a model may need, with what the store knows of each."""
        with self._kind_errors():
            found = self.fs.find(self.root, detail=True)
        names = {
            path.removeprefix(self.root).lstrip("/") or Path(path).name: info for path, info in found.items()
        }
        if not names:
            raise BadRequest(f"there is nothing at {self.url}, or the server may not read it")
        patterns = (*FILES, "*.gguf", "*.bin", "*.pt")
        return {name: info for name, info in names.items() if any(fnmatch(name, p) for p in patterns)}

    def version(self, files: dict[str, dict[str, Any]]) -> str:
        """Changes when a file does."""
        return repr(
            [(n, i.get("size"), i.get("ETag") or i.get("etag") or i.get("mtime")) for n, i in files.items()]
        )

    def path(self, name: str) -> str:
        return (
            self.root if self.root.endswith("/" + name) and name.endswith(".gguf") else f"{self.root}/{name}"
        )

    def read(self, name: str) -> bytes:
        with self._kind_errors():
            return bytes(self.fs.cat_file(self.path(name)))

    def download(self, names: dict[str, dict[str, Any]], target: Path, progress: Progress) -> None:
        total = sum(int(info.get("size") or 0) for info in names.values())
        done = 0
        for name in names:
            path = (target / name).resolve()
            if not path.is_relative_to(target.resolve()):
                raise BadRequest(f"{self.url}: {name!r} points outside the folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._kind_errors(), self.fs.open(self.path(name), "rb") as source, path.open("wb") as file:
                while block := source.read(8 << 20):
                    file.write(block)
                    done += len(block)
                    progress(done, total, f"downloading {self.url}")

    @contextmanager
    def _kind_errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise BadRequest(f"there is nothing at {self.url}") from error
        except PermissionError as error:
            raise BadRequest(f"the server's credentials may not read {self.url}") from error
        except driver_errors() as error:
            raise UpstreamError(
                f"the object store did not give {self.url}: {type(error).__name__}"
            ) from error
