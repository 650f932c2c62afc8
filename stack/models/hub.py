"""Models of the Hugging Face hub, kept in huggingface_hub's own cache (HF_HOME), where other tools find them.

HF_ENDPOINT, HF_HUB_OFFLINE and a login are honoured; STACK_HF_TOKEN goes before the login's token.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stack.errors import BadRequest, UpstreamError
from stack.models.cache import Progress
from stack.settings import get_settings

# Never pickles, and none of the copies in other formats that repositories hold.
FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
COPIES = ("consolidated*", "original/*", "onnx/*", "openvino/*")
_SOURCE = re.compile(
    r"(?:hf://)?(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(?P<file>/[^@]+\.gguf)?(?:@(?P<revision>[\w./-]+))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class HubSource:
    repo: str
    revision: str | None = None
    file: str | None = None  # of a .gguf in the repository

    @classmethod
    def parse(cls, source: str) -> HubSource | None:
        match = _SOURCE.fullmatch(source)
        if match is None:
            return None
        return cls(match["repo"], match["revision"], match["file"][1:] if match["file"] else None)


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds, and the contents of its small configuration files."""

    commit: str
    names: frozenset[str]
    configs: dict[str, bytes]


def gguf_file(source: HubSource, names: frozenset[str]) -> str | None:
    """The GGUF file that the source means; None when it means the repository's safetensors."""
    files = sorted(name for name in names if name.endswith(".gguf"))
    if source.file is not None:
        if source.file not in names:
            raise BadRequest(
                f"{source.repo} has no {source.file!r}; it has {', '.join(files) or 'no GGUF file'}"
            )
        return source.file
    if not files or any(name.endswith(".safetensors") for name in names):
        return None
    if len(files) > 1:
        raise BadRequest(f"{source.repo} has several GGUF files; name one: {source.repo}/{files[0]}, …")
    return files[0]


def fetch(source: HubSource, progress: Progress) -> Path:
    """Download what was not, and return the local folder, or the local .gguf file."""
    from huggingface_hub import HfApi, hf_hub_download

    file = source.file
    with hub_errors(source):
        common: dict[str, Any] = {
            "revision": source.revision, "token": hub_token(), "endpoint": hub_endpoint(),
            "local_files_only": _offline(), "tqdm_class": progress_bar(progress),
        }  # fmt: skip
        if file is None and not _offline():
            api = HfApi(endpoint=hub_endpoint(), token=hub_token())
            file = gguf_file(source, frozenset(api.list_repo_files(source.repo, revision=source.revision)))
        if file is not None:
            return Path(hf_hub_download(source.repo, file, **common))
        return _snapshot(source, common)


def cached(source: HubSource) -> Path | None:
    """The folder, or .gguf file, of an earlier `fetch`; asks nobody."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    common: dict[str, Any] = {"revision": source.revision, "local_files_only": True}
    try:
        if source.file is not None:
            return Path(hf_hub_download(source.repo, source.file, **common))
        return _snapshot(source, common)
    except LocalEntryNotFoundError:
        return None


def _snapshot(source: HubSource, options: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        source.repo, allow_patterns=list(FILES), ignore_patterns=list(COPIES), **options
    )
    return Path(folder)


def inspect(source: HubSource, timeout_s: float) -> Listing:
    """List a repository and read its configuration files; UpstreamError when the hub does not answer."""
    from huggingface_hub import HfApi, hf_hub_download

    with hub_errors(source):
        info = HfApi(endpoint=hub_endpoint(), token=hub_token()).model_info(
            source.repo, revision=source.revision, timeout=timeout_s
        )
        names = frozenset(sibling.rfilename for sibling in info.siblings or ())
        configs = {}
        for name in sorted(name for name in names if _describes(name)):
            path = hf_hub_download(
                source.repo,
                name,
                revision=info.sha,
                token=hub_token(),
                endpoint=hub_endpoint(),
                etag_timeout=timeout_s,
            )
            configs[name] = Path(path).read_bytes()
        return Listing(str(info.sha), names, configs)


def _describes(name: str) -> bool:
    return name in {
        "config.json", "modules.json", "sentence_bert_config.json", "tokenizer_config.json",
        "model.safetensors.index.json", "adapter_config.json",
    } or re.fullmatch(r"\d_\w+/config\.json", name) is not None  # fmt: skip


def _offline() -> bool:
    from huggingface_hub.constants import is_offline_mode

    return bool(is_offline_mode())


def hub_endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def hub_token() -> str | None:
    token = get_settings().hf_token
    return token.get_secret_value() if token is not None else None


@contextmanager
def hub_errors(source: HubSource, kind: str = "model") -> Iterator[None]:
    """Say what a caller can do about the hub's errors."""
    from huggingface_hub import errors

    repo, revision = source.repo, source.revision
    http_error: Any = errors.HfHubHTTPError.__mro__[1]  # of httpx or httpx2, whichever the hub's client uses
    try:
        yield
    except errors.GatedRepoError as error:
        raise BadRequest(
            f"{repo} is gated: accept its terms on its page, and start the server with a token that may "
            "read it in STACK_HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise BadRequest(f"{repo} has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise BadRequest(
            f"the hub has no {kind} {repo!r}, or it is private and STACK_HF_TOKEN may not read it"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise BadRequest(f"{repo} has no file {source.file!r}") from error
    except errors.LocalEntryNotFoundError as error:
        raise UpstreamError(f"{repo!r} is not in the local cache and the hub cannot be reached") from error
    except (OSError, http_error) as error:
        raise UpstreamError(f"the hub did not give {repo!r}: {type(error).__name__}") from error


def progress_bar(progress: Progress) -> type:
    """A tqdm that draws nothing and reports bytes."""
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": False, "file": open(os.devnull, "w")})  # noqa: SIM115

        def display(self, *args: Any, **kwargs: Any) -> None:
            if self.unit == "B" and self.n:
                progress(int(self.n), int(self.total) if self.total else None, "downloading from the hub")

    return Bar
