"""Each format, well and badly written, through the conversion that the bounded child runs."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.datasets.convert import convert
from stack.datasets.formats import Format, Input, detect
from stack.datasets.rows import MAX_ROW_BYTES
from stack.errors import BadRequest
from stack.schemas.datasets import DatasetPurpose
from tests.datasets.conftest import qa

QA: DatasetPurpose = "eval/question-answer"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def rows_of(
    folder: Path, content: bytes, format: Format, purpose: DatasetPurpose = QA, **fields: Any
) -> list[Any]:
    path, out = folder / "file", folder / "out"
    path.write_bytes(content)
    count = convert([asdict(Input(str(path), format, **fields))], purpose, str(out), 1 << 26)
    with pa.OSFile(str(out)) as file, pa.ipc.open_stream(file) as reader:
        table = reader.read_all()
    assert count == table.num_rows
    assert table["size"].to_pylist() == [len(text.encode()) for text in table["row"].to_pylist()]
    return [json.loads(text) for text in table["row"].to_pylist()]


ROWS = qa(3)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = 'question,answer\r\n"a ""quoted"", text\nof two lines",42\r\n\r\né,\r\n'
CSV_ROWS = [{"question": 'a "quoted", text\nof two lines', "answer": "42"}, {"question": "é", "answer": ""}]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        json.dumps({"data": ROWS, "next": None}),
        json.dumps({"rows": ROWS}),
        LINES,
        "\ufeff" + json.dumps(ROWS) + "\n\n",
        "\n".join(json.dumps(row, indent=1) for row in ROWS),
    ],
)
def test_json(tmp_path: Path, text: str) -> None:
    assert rows_of(tmp_path, text.encode(), "json") == ROWS


@pytest.mark.parametrize("size", [1, 100, 10_000])
def test_json_over_the_edges_of_what_is_read_at_once(tmp_path: Path, size: int) -> None:
    draw = random.Random(size)
    rows = [
        {"question": '{["\\ü' * draw.randrange(size), "answer": "]},", "n": draw.random()}
        for _ in range(3_000_000 // (60 + 6 * size))
    ]
    assert rows_of(tmp_path, json.dumps(rows, ensure_ascii=False).encode(), "json") == rows


def test_a_json_row_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    rows = [{"question": "x" * 5_000_000, "answer": ""}, *qa(1)]
    assert rows_of(tmp_path, json.dumps(rows).encode(), "json") == rows


@pytest.mark.parametrize("text", ["[]", "", " \n", '{"data": []}'])
def test_json_without_rows(tmp_path: Path, text: str) -> None:
    assert rows_of(tmp_path, text.encode(), "json") == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=4))
def test_any_json_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, more: list[Any]) -> None:
    rows = [row | {"question": "q", "answer": "a"} for row in more]
    folder = tmp_path_factory.mktemp("json")
    lines = "\n".join(json.dumps(row) for row in rows)
    for content, format in ((json.dumps(rows), "json"), (lines, "jsonl")):
        found = rows_of(folder, content.encode(), format)  # type: ignore[arg-type]
        assert json.dumps(found) == json.dumps(rows)  # also the order of keys, and 1 apart from 1.0


def test_jsonl(tmp_path: Path) -> None:
    assert rows_of(tmp_path, b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n\n").encode(), "jsonl") == ROWS
    assert rows_of(tmp_path, LINES.rstrip().encode("utf-16"), "jsonl") == ROWS
    assert rows_of(tmp_path, gzip.compress(LINES.encode()), "jsonl", gzipped=True) == ROWS


def test_csv(tmp_path: Path) -> None:
    assert rows_of(tmp_path, CSV.encode(), "csv") == CSV_ROWS
    assert rows_of(tmp_path, CSV.encode("utf-8-sig"), "csv") == CSV_ROWS
    assert rows_of(tmp_path, CSV.encode("latin-1"), "csv", charset="iso-8859-1") == CSV_ROWS
    assert rows_of(tmp_path, b"question\tanswer\na,b\tc\n", "tsv") == [{"question": "a,b", "answer": "c"}]


def test_messages_in_csv_are_json(tmp_path: Path) -> None:
    text = 'messages,answer\n"[{""role"": ""user"", ""content"": ""hi""}]",a\n'
    (row,) = rows_of(tmp_path, text.encode(), "csv", "eval/messages-answer")
    assert row == {"messages": [{"role": "user", "content": "hi"}], "answer": "a"}


def test_parquet(tmp_path: Path) -> None:
    table = pa.table(
        {
            "messages": [[{"role": "user", "content": "hi", "name": None}]] * 2,
            "answer": ["a", "b"],
            "when": [datetime(2024, 1, 2), None],
            "score": [1.5, float("nan")],
            "bytes": [b"\xff", b""],
        }
    )
    pq.write_table(table, tmp_path / "t")
    rows = rows_of(tmp_path, (tmp_path / "t").read_bytes(), "parquet", "eval/messages-answer")
    assert rows[0] == {
        "messages": [{"role": "user", "content": "hi", "name": None}],
        "answer": "a", "when": "2024-01-02T00:00:00", "score": 1.5, "bytes": "_w==",
    }  # fmt: skip
    assert (rows[1]["when"], rows[1]["score"]) == (None, None)


def parquet(folder: Path, **columns: Any) -> bytes:
    pq.write_table(pa.table(columns), folder / "t")
    return (folder / "t").read_bytes()


@pytest.mark.parametrize(
    ("content", "format", "problem"),
    [
        ("[" * 100_000, "json", "row 0 .*JSON object"),
        ('[{"a":' * 100_000, "json", "nested too deep"),
        ('[{"a":' + "[" * 500 + "]" * 500 + "}]", "json", "nested too deep"),
        (json.dumps(ROWS)[:-1], "json", "row 3 .*the file ends within the list"),
        (json.dumps(ROWS)[:-9], "json", "row 2 .*not JSON"),
        (json.dumps(ROWS) + "x", "json", "after the file's list"),
        ('{"data": [] x}', "json", "after the file's list"),
        ("[1, 2]", "json", "row 0 .*JSON object, not '1, 2]'"),
        ('[{"question": NaN}]', "json", "row 0 .*not JSON"),
        ('[{"question": "a", "answer": "b", "c": 1e400}]', "json", "row 0 .*beyond what JSON can say"),
        ('[{"question": ' + "1" * 5000 + "}]", "json", "row 0 .*not JSON"),
        ('"text"', "json", "row 0 .*JSON object"),
        (LINES + "{", "jsonl", "row 3 .*not JSON"),
        ("[" * 100_000, "jsonl", "row 0 .*nested too deep"),
        (LINES + '"x"', "jsonl", "row 3 .*JSON object"),
        ("x" * (MAX_ROW_BYTES + 5), "jsonl", "line 1 of the jsonl has more than"),
        ("", "csv", "the csv is empty"),
        ("question,question\n1,2\n", "csv", "the column 'question' twice"),
        ("question,answer\n1,2\n1\n", "csv", "row 1 .*has 1 cells, the header has 2"),
        ("question,answer\n1,2,3\n", "csv", "row 0 .*has 3 cells"),
        ('question,answer\n"1,2\n', "csv", "row 0 .*not csv: unexpected end of data"),
        ('question,answer\n"1"x,2\n', "csv", "row 0 .*not csv"),
        ("question,answer\n" + "x" * (MAX_ROW_BYTES + 5) + ",1\n", "csv", "line 2 of the csv has more than"),
        ('question,answer\n"' + "x\n" * MAX_ROW_BYTES + '",1\n', "csv", "field larger than field limit"),
        (",".join(map(str, range(1_000_000))) + "\n", "csv", "has 1000000 columns"),
        ("question\n1\n", "csv", "row 0 .*column 'answer': is missing"),
    ],
)
def test_bad_text(tmp_path: Path, content: str, format: Format, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        rows_of(tmp_path, content.encode(), format)


def test_bad_cells_of_messages(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"row 0 .*column 'messages': is a JSON list of messages"):
        rows_of(tmp_path, b"messages\nhi\n", "csv", "post-training/messages")


def test_bad_bytes(tmp_path: Path) -> None:
    packed = gzip.compress(LINES.encode())
    with pytest.raises(ValueError, match="gzip data is damaged or cut off"):
        rows_of(tmp_path, packed[:-10], "jsonl", gzipped=True)
    with pytest.raises(ValueError, match=r"not utf-8 text: .*charset"):
        rows_of(tmp_path, CSV.encode("latin-1"), "csv")
    for charset in ("no-such", "zip"):
        with pytest.raises(ValueError, match=r"charset .* is not known"):
            rows_of(tmp_path, b"", "csv", charset=charset)
    bomb = gzip.compress(b"x\n" * (35 << 20))  # whose first line is no JSON: seen before it bursts
    with pytest.raises(ValueError, match=r"row 0 .*not JSON"):
        rows_of(tmp_path, bomb, "jsonl", gzipped=True)
    bomb = gzip.compress((b" " * 1000 + b"\n") * 70_000)
    with pytest.raises(ValueError, match="unpacks to more than"):
        rows_of(tmp_path, bomb, "jsonl", gzipped=True)


def test_bad_parquet(tmp_path: Path) -> None:
    good = parquet(tmp_path, question=["q"] * 1000, answer=["a"] * 1000)
    assert len(rows_of(tmp_path, good, "parquet")) == 1000
    for content in (good[:-100], good[100:], good[:200] + b"\0" * 50 + good[250:], b"", b"PAR1", b"PAR1" * 3):
        with pytest.raises(ValueError, match="damaged, cut off, or no parquet"):
            rows_of(tmp_path, content, "parquet")
    wide = parquet(tmp_path, **{f"c{i}": [1] for i in range(5000)})
    with pytest.raises(ValueError, match="has 5000 columns, at most 4096"):
        rows_of(tmp_path, wide, "parquet")
    with pytest.raises(ValueError, match=r"row 1 .*column 'answer': is a text, not null"):
        rows_of(tmp_path, parquet(tmp_path, question=["q", "q"], answer=["a", None]), "parquet")


@pytest.mark.parametrize(
    ("content_type", "uri", "expected"),
    [
        ("text/csv", "https://h/x", ("csv", False)),
        ("csv", "data:csv;base64,eA==", ("csv", False)),
        ("text/plain", "https://h/x.jsonl?a=b.csv", ("jsonl", False)),
        ("", "lsfs://x.PARQUET", ("parquet", False)),
        ("application/octet-stream", "s3://b/x.ndjson", ("jsonl", False)),
        ("application/json; charset=utf-8".partition(";")[0], "https://h/x.jsonl", ("json", False)),
    ],
)
def test_formats(tmp_path: Path, content_type: str, uri: str, expected: tuple[Format, bool]) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"text")
    found = detect(str(path), content_type, uri, None)
    assert (found.format, found.gzipped) == expected


def test_formats_of_compressed_and_unknown_files(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(gzip.compress(b"x"))
    assert detect(str(path), "application/gzip", "https://h/x.csv.gz", None).gzipped
    path.write_bytes(b"x")  # unpacked on its way
    assert not detect(str(path), "text/csv", "https://h/x.csv.gz", None).gzipped
    path.write_bytes(b"PAR1")
    assert detect(str(path), "", "https://h/x", None).format == "parquet"
    path.write_bytes(b"<html>")
    with pytest.raises(BadRequest, match=r"csv, tsv, json, jsonl or parquet.*'text/html'"):
        detect(str(path), "text/html", "https://h/x", None)
