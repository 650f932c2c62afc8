"""Tables -> one paragraph a row, each value with its column's name: a chunk of a table explains itself."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from stack.rag.formats import Text
from stack.rag.formats.charset import decode

MAX_CELL_CHARS = 1_000_000
DELIMITERS = ",;\t|"


def read(content: bytes, charset: str | None) -> Text:
    text = decode(content, charset)
    csv.field_size_limit(MAX_CELL_CHARS)
    try:
        rows = [
            row for row in csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text)) if any(row)
        ]
    except csv.Error as error:
        if "field larger" in str(error):
            raise ValueError(f"it has a cell of more than {MAX_CELL_CHARS} characters") from None
        raise ValueError(f"it is no CSV: {error}") from None
    if len(rows) > 1 and _is_header(rows[0]):
        paragraphs = [_named(rows[0], row) for row in rows[1:]]
    else:
        paragraphs = [", ".join(cell.strip() for cell in row) for row in rows]
    return {"text": "\n\n".join(paragraphs), "title": None}


def _delimiter(text: str) -> str:
    """The one of which the first line has most."""
    line = text.lstrip("\r\n").partition("\n")[0][:10_000]
    return max(DELIMITERS, key=line.count)


def _is_header(row: Sequence[str]) -> bool:
    """Names: each there, each once, none a number."""
    names = [cell.strip() for cell in row]
    return all(names) and len(set(names)) == len(names) and not any(map(_is_number, names))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _named(header: Sequence[str], row: Sequence[str]) -> str:
    names = [*header, *("" for _ in row[len(header) :])]
    return "\n".join(
        f"{name.strip()}: {cell.strip()}" if name else cell.strip()
        for name, cell in zip(names, row, strict=False)
        if cell.strip()
    )
