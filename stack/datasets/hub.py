"""Datasets of the Hugging Face hub: huggingface://[datasets/]owner/name?split=train[&config=…][&revision=…].

Data files only, none of a repository's code: the hub's own parquet copies (revision refs/convert/parquet),
else the files that the repository holds for the split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from stack.datasets.formats import Input, named
from stack.errors import BadRequest
from stack.models.hub import HubSource, hub_endpoint, hub_errors, hub_token, progress_bar

SCHEME = "huggingface://"
CONVERTED = "refs/convert/parquet"
_REPO = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
_HELP = "write huggingface://owner/name?split=train, and &config=… or &revision=… where needed"


@dataclass(frozen=True, slots=True)
class HubDataset:
    repo: str
    split: str
    config: str | None
    revision: str | None

    @classmethod
    def parse(cls, uri: str) -> HubDataset:
        path, _, query = uri[len(SCHEME) :].partition("?")
        repo = path.removeprefix("datasets/").strip("/")
        options = dict(parse_qsl(query))
        unknown = options.keys() - {"split", "config", "name", "revision"}
        if not _REPO.fullmatch(repo) or unknown:
            wrong = f"the option {min(unknown)!r}" if unknown else f"{repo[:100]!r}, which is no repository"
            raise BadRequest(f"the URI has {wrong}: {_HELP}")
        config = options.get("config", options.get("name"))
        return cls(repo, options.get("split", "train"), config, options.get("revision"))


def download(uri: str, folder: Path, max_bytes: int) -> list[Input]:
    """Fetch the split's files into the folder. Blocks. BadRequest names what there is instead."""
    from huggingface_hub import hf_hub_download

    wanted = HubDataset.parse(uri)
    revision, names, sizes = _choose(wanted)
    size = sum(sizes[name] for name in names)
    if size > max_bytes:
        raise BadRequest(f"{wanted.repo} has {size} bytes for this split, at most {max_bytes} are taken")
    inputs = []
    for name in names:
        with hub_errors(HubSource(wanted.repo, revision, name), "dataset"):
            path = hf_hub_download(
                wanted.repo, name, repo_type="dataset", revision=revision, token=hub_token(),
                endpoint=hub_endpoint(), local_dir=folder, tqdm_class=progress_bar(lambda *_: None),
            )  # fmt: skip
        found, gzipped = named(name)
        assert found is not None  # only such files are chosen
        inputs.append(Input(str(path), found, None, gzipped))
    return inputs


def _choose(wanted: HubDataset) -> tuple[str | None, list[str], dict[str, int]]:
    """(revision, files in order, sizes): the hub's parquet copies if it has them, else the owner's files."""
    if wanted.revision is None:
        try:
            sizes = _files(wanted.repo, CONVERTED)
        except BadRequest:  # not converted; if there is no such repository, the next call says so
            sizes = {}
        if sizes:
            return CONVERTED, _converted(wanted, sizes), sizes
    sizes = _files(wanted.repo, wanted.revision)
    return wanted.revision, _own(wanted, sizes), sizes


def _files(repo: str, revision: str | None) -> dict[str, int]:
    """Names and sizes of the data files."""
    from huggingface_hub import HfApi

    with hub_errors(HubSource(repo, revision), "dataset"):
        info = HfApi(endpoint=hub_endpoint(), token=hub_token()).dataset_info(
            repo, revision=revision, files_metadata=True, timeout=30
        )
    return {file.rfilename: file.size or 0 for file in info.siblings or () if named(file.rfilename)[0]}


def _converted(wanted: HubDataset, names: Iterable[str]) -> list[str]:
    """config/split/0000.parquet, …; a large dataset has a part of its rows in config/partial-split."""
    parts = [(name, *name.split("/")[:2]) for name in sorted(names) if name.count("/") == 2]
    config = _config(wanted, {config for _, config, _ in parts})
    splits = {split for _, of, split in parts if of == config}
    return _nonempty(wanted, [n for n, of, split in parts if (of, split) == (config, wanted.split)], splits)


def _config(wanted: HubDataset, configs: set[str]) -> str:
    if wanted.config is None and "default" in configs:
        return "default"
    if wanted.config is None and len(configs) == 1:
        return min(configs)
    if wanted.config not in configs:
        raise BadRequest(f"{wanted.repo} has the configs {', '.join(sorted(configs))}: add &config=…")
    return wanted.config


def _own(wanted: HubDataset, names: Iterable[str]) -> list[str]:
    """Files whose path has the split as a word (data/train-00000-of-00001.parquet); all, if none has any."""
    names = sorted(names)
    if wanted.config is not None:
        names = [name for name in names if _has_word(name, wanted.config)]
    found = [name for name in names if _has_word(name, wanted.split)]
    split_anywhere = any(_has_word(n, word) for n in names for word in ("train", "test", "validation", "dev"))
    if not found and wanted.split == "train" and not split_anywhere:
        found = names
    # The same rows are often there in several formats.
    for wanted_format in ("parquet", "jsonl", "json", "csv", "tsv"):
        if of_format := [name for name in found if named(name)[0] == wanted_format]:
            return of_format
    return _nonempty(wanted, [], names)


def _has_word(name: str, word: str) -> bool:
    return re.search(rf"(?:^|[^A-Za-z0-9]){re.escape(word)}(?:[^A-Za-z0-9]|$)", name) is not None


def _nonempty(wanted: HubDataset, found: list[str], instead: Iterable[str]) -> list[str]:
    if found:
        return found
    there = ", ".join(sorted(instead)[:20]) or "no file of rows"
    raise BadRequest(f"{wanted.repo} has nothing for the split {wanted.split!r}; it has {there}")
