"""Which format a file has: by its content type, then by its suffix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from stack.errors import BadRequest

Format = Literal["csv", "tsv", "json", "jsonl", "parquet"]

SUFFIXES: dict[str, Format] = {
    ".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet",
}  # fmt: skip
_TYPES: dict[str, Format] = {
    "text/csv": "csv", "application/csv": "csv", "csv": "csv",
    "text/tab-separated-values": "tsv", "tsv": "tsv",
    "application/json": "json", "text/json": "json", "json": "json",
    "application/jsonl": "jsonl", "application/x-jsonl": "jsonl", "application/jsonlines": "jsonl",
    "application/x-jsonlines": "jsonl", "application/ndjson": "jsonl", "application/x-ndjson": "jsonl",
    "application/jsonl+json": "jsonl", "text/jsonl": "jsonl", "jsonl": "jsonl", "ndjson": "jsonl",
    "application/vnd.apache.parquet": "parquet", "application/parquet": "parquet",
    "application/x-parquet": "parquet", "parquet": "parquet",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Input:
    """A file on this machine to read rows from."""

    path: str
    format: Format
    charset: str | None = None
    gzipped: bool = False


def named(name: str) -> tuple[Format | None, bool]:
    """The format that a file's name tells, and whether it is gzipped."""
    name = name.lower()
    gzipped = name.endswith(".gz")
    name = name.removesuffix(".gz")
    return next((found for suffix, found in SUFFIXES.items() if name.endswith(suffix)), None), gzipped


def detect(path: str, content_type: str, uri: str, charset: str | None) -> Input:
    """What was downloaded from `uri`. Raises BadRequest, which names the formats."""
    is_data = uri[:5].lower() == "data:"
    by_name, gzipped = (None, False) if is_data else named(unquote(uri.partition("?")[0].partition("#")[0]))
    found = _TYPES.get(content_type, by_name)
    with open(path, "rb") as file:
        start = file.read(4)
    if found is None and start == b"PAR1":
        found = "parquet"
    if found is None:
        raise BadRequest(
            f"a dataset is csv, tsv, json, jsonl or parquet, by its content type or its suffix; "
            f"this one has the content type {content_type!r}"
        )
    # By its first bytes: a server may call a gzipped file text, and a client may have unpacked it.
    return Input(path, found, charset, (gzipped or "gzip" in content_type) and start[:2] == b"\x1f\x8b")
