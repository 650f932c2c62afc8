"""Files -> rows, one at a time, in memory that does not grow with the file. Runs in the converting child.

What is wrong with a file is a ValueError with a message for its owner. Messages name no path.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator
from typing import Any, TextIO

from stack.datasets.formats import Input
from stack.datasets.rows import MAX_ROW_BYTES, BadRows, parse, place

MAX_COLUMNS = 4096
_CHUNK = 1 << 20
# Rows compress to a tenth or, when very much alike, to a fiftieth; a bomb to a thousandth.
_UNPACKED_RATIO, _UNPACKED_FREELY = 100, 64 << 20
_SPACE = " \t\r\n"
_LIST = re.compile(r'\s*(?:\[|(\{)\s*"(?:data|rows)"\s*:\s*\[)')


def read(source: Input, max_bytes: int, first: int = 0) -> Iterator[Any]:
    """The file's rows. `max_bytes` bounds its unpacked size; rows are counted from `first` in messages."""
    if source.format == "parquet":
        yield from _parquet(source.path)
        return
    try:
        with open(source.path, "rb") as file:
            text = _opened(file, source, max_bytes)
            if source.format == "json":
                yield from _json(text, first)
            elif source.format == "jsonl":
                yield from _jsonl(text, first)
            else:
                yield from _csv(text, "," if source.format == "csv" else "\t", first)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the file is not {error.encoding} text: {error.reason}; name its charset in the content type"
        ) from None
    except LookupError:
        raise ValueError(f"the charset {source.charset!r} is not known") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise ValueError("the file's gzip data is damaged or cut off") from None


class _Counted(io.RawIOBase):
    """A stream that ends with an error when more comes out of it than the limit."""

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self._stream, self._left, self._limit = stream, limit, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"the file unpacks to more than {self._limit} bytes")
        buffer[: len(data)] = data
        return len(data)


def _opened(file: io.BufferedReader, source: Input, max_bytes: int) -> TextIO:
    if source.gzipped:
        packed = os.fstat(file.fileno()).st_size
        limit = min(max_bytes, max(_UNPACKED_FREELY, packed * _UNPACKED_RATIO))
        file = io.BufferedReader(_Counted(gzip.GzipFile(fileobj=file), limit), 1 << 16)
    start = file.peek(3)[:3]
    charset = source.charset
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        charset = "utf-16"
    elif charset is None or codecs.lookup(charset).name in ("utf-8", "ascii"):
        charset = "utf-8-sig"
    return io.TextIOWrapper(file, charset, newline="" if source.format in ("csv", "tsv") else "\n")


def _lines(text: TextIO, what: str) -> Iterator[str]:
    number = 0
    while line := text.readline(MAX_ROW_BYTES + 1):
        if len(line) > MAX_ROW_BYTES:
            raise ValueError(
                f"line {number + 1} of the {what} has more than {MAX_ROW_BYTES} characters, "
                "which is more than a row may have"
            )
        number += 1
        yield line


def _jsonl(text: TextIO, first: int) -> Iterator[Any]:
    index = first
    for line in _lines(text, "jsonl"):
        if line.isspace():
            continue
        yield parse(line, index)
        index += 1


def _csv(text: TextIO, delimiter: str, first: int) -> Iterator[Any]:
    csv.field_size_limit(MAX_ROW_BYTES)
    rows = csv.reader(_lines(text, "csv"), delimiter=delimiter, strict=True)
    index = first
    try:
        header = next(rows, [])
        _check_header(header)
        for cells in rows:
            if not cells:
                continue
            if len(cells) != len(header):
                raise BadRows(f"{place(index)}: has {len(cells)} cells, the header has {len(header)}")
            row: dict[str, Any] = dict(zip(header, cells, strict=True))
            if "messages" in row:
                row["messages"] = _cell(row["messages"], index)
            yield row
            index += 1
    except csv.Error as error:
        raise BadRows(f"{place(index)}: not csv: {error} (line {rows.line_num})") from None


def _check_header(header: list[str]) -> None:
    if not header:
        raise ValueError("the csv is empty: its first line names the columns")
    if len(header) > MAX_COLUMNS:
        raise ValueError(f"the csv has {len(header)} columns, at most {MAX_COLUMNS} are read")
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise ValueError(f"the csv names the column {twice[:60]!r} twice")


def _cell(text: str, index: int) -> Any:
    """Messages in a cell are written as JSON."""
    try:
        return parse(text, index)
    except BadRows as error:
        reason = str(error).partition(": ")[2]
        raise BadRows(f"{place(index, 'messages')}: is a JSON list of messages; this is {reason}") from None


def _json(text: TextIO, first: int) -> Iterator[Any]:
    """Objects in a list, in an object's list `data` or `rows`, or one after the other.

    `json` finds where an object ends; its text is then parsed as everywhere else.
    """
    scan = json.JSONDecoder().raw_decode
    buffer, ended = text.read(_CHUNK), False
    start = _LIST.match(buffer)
    position, index = (start.end() if start else 0), first
    more = _CHUNK
    while True:
        position = _skip(buffer, position, "," if start and index > first else "")
        if position < len(buffer) and start and buffer[position] == "]":
            _check_rest(buffer[position + 1 :] + text.read(_CHUNK), start[1] is not None)
            return
        try:
            if position == len(buffer):
                raise IndexError
            if buffer[position] != "{":
                raise BadRows(f"{place(index)}: is a JSON object, not {buffer[position : position + 20]!r}")
            end = scan(buffer, position)[1]
        except BadRows:
            raise
        except RecursionError:
            raise BadRows(f"{place(index)}: nested too deep, at most 200 levels are read") from None
        except (IndexError, ValueError) as error:
            if ended and position == len(buffer) and not start:
                return
            if ended or len(buffer) - position > MAX_ROW_BYTES:
                reason = "the file ends within the list" if isinstance(error, IndexError) else error
                raise BadRows(f"{place(index)}: not JSON: {reason}") from None
            data = text.read(more)
            # A row that is longer than what was read is looked for in twice as much each time.
            buffer, position, ended, more = buffer[position:] + data, 0, not data, more * 2
            continue
        yield parse(buffer[position:end], index)
        position, index, more = end, index + 1, _CHUNK


def _skip(buffer: str, position: int, separator: str) -> int:
    """Past white space, and past one separator in it."""
    while position < len(buffer) and (buffer[position] in _SPACE or buffer[position] == separator):
        if buffer[position] == separator:
            separator = ""
        position += 1
    return position


def _check_rest(rest: str, in_object: bool) -> None:
    """What follows the list: nothing, or the rest of the object that it stands in."""
    rest = rest.strip()
    try:
        if in_object:
            json.loads('{"rows":[]' + rest)
        elif rest:
            raise ValueError(rest)
    except (ValueError, RecursionError):
        raise ValueError("there is something other than JSON after the file's list of rows") from None


def _parquet(path: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with (
            open(path, "rb") as source,
            pq.ParquetFile(source, buffer_size=_CHUNK, pre_buffer=False, schema_depth_limit=100) as file,
        ):
            if len(file.schema) > MAX_COLUMNS:
                raise BadRows(
                    f"the parquet file has {len(file.schema)} columns, at most {MAX_COLUMNS} are read"
                )
            for batch in file.iter_batches(_batch_rows(file.metadata), use_threads=False):
                yield from batch.to_pylist()
    except (BadRows, MemoryError):
        raise
    except (pa.ArrowException, OSError, ValueError):
        raise ValueError("the file is damaged, cut off, or no parquet file") from None


def _batch_rows(metadata: Any) -> int:
    """Rows that take about a MiB unpacked, if the file tells the truth. If not, memory is bounded."""
    size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    return int(max(1, min(1000, _CHUNK * metadata.num_rows // max(size, 1))))
