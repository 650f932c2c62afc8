"""Files of rows -> one Arrow file of checked JSON texts: what the bounded child does with callers' files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from stack.datasets.formats import Input
from stack.datasets.readers import read
from stack.datasets.rows import encode
from stack.schemas.datasets import DatasetPurpose

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS, _BATCH_BYTES = 5000, 4 << 20


def schema() -> pa.Schema:
    """A row's JSON text, and its length in bytes, from which a page knows what it will weigh.

    Lance compresses plain text by itself, to less and with quicker reads by offset than with zstd.
    """
    import pyarrow as pa

    return pa.schema(
        [pa.field("row", pa.utf8(), nullable=False), pa.field("size", pa.int32(), nullable=False)]
    )


def batches(texts: Iterable[bytes]) -> Iterator[pa.RecordBatch]:
    """The texts in batches that fit in memory."""
    part: list[bytes] = []
    size = 0
    for text in texts:
        part.append(text)
        size += len(text)
        if len(part) == _BATCH_ROWS or size >= _BATCH_BYTES:
            yield _batch(part)
            part, size = [], 0
    if part:
        yield _batch(part)


def convert(inputs: list[dict[str, Any]], purpose: DatasetPurpose, out: str, max_bytes: int) -> int:
    """Write all rows to the Arrow stream file `out` and return their number. Raises ValueError."""
    return write(_texts([Input(**fields) for fields in inputs], purpose, max_bytes), out)


def write(texts: Iterable[bytes], out: str) -> int:
    """Write rows' JSON texts to the Arrow stream file `out`."""
    import pyarrow as pa

    rows = 0
    options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    with pa.OSFile(out, "wb") as file, pa.ipc.new_stream(file, schema(), options=options) as writer:
        for batch in batches(texts):
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _texts(inputs: list[Input], purpose: DatasetPurpose, max_bytes: int) -> Iterator[bytes]:
    index = size = 0
    for source in inputs:
        # pandas writes missing numbers as NaN.
        rows = read(source, max_bytes, index)
        for text in encode(rows, purpose, index, nan_is_null=source.format == "parquet"):
            index += 1
            size += len(text)
            if size > max_bytes:
                raise ValueError(f"the rows have more than {max_bytes} bytes as JSON")
            yield text


def _batch(texts: list[bytes]) -> pa.RecordBatch:
    import pyarrow as pa

    sizes = pa.array(map(len, texts), pa.int32())
    return pa.record_batch([pa.array(texts, pa.utf8()), sizes], schema=schema())
