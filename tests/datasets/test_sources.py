"""Sources behind URIs; what open_uri opens has tests of its own, the hub's is the real client on loopback."""

from __future__ import annotations

import asyncio
import base64
import gzip
import http.server
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stack.datasets import sources
from stack.datasets.datasets import Datasets
from stack.datasets.hub import HubDataset
from stack.errors import BadRequest, StackError
from stack.settings import Settings
from tests.datasets.conftest import opened, qa, register
from tests.models.hub_server import Hub

LINES = "".join(json.dumps(row) + "\n" for row in qa(3))


def uri(text: str) -> dict[str, object]:
    return {"type": "uri", "uri": text}


async def read(datasets: Datasets, text: str) -> list[dict[str, object]]:
    dataset = await register(datasets, uri(text), dataset_id=None)
    return await datasets.read(dataset.identifier)


async def test_data_urls_of_every_format(datasets: Datasets, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(qa(3)), tmp_path / "t")
    texts = {"q": "csv", "[": "json", "{": "jsonl", "P": "parquet"}
    csv = b"question,answer\nq0,a0\n"
    for content in (csv, json.dumps(qa(3)).encode(), LINES.encode(), (tmp_path / "t").read_bytes()):
        kind = texts[chr(content[0])]
        found = await read(datasets, f"data:{kind};base64,{base64.b64encode(content).decode()}")
        assert found == (qa(3) if kind != "csv" else [{"question": "q0", "answer": "a0"}])
    assert await read(datasets, "data:text/csv,question,answer%0Aq,a") == [{"question": "q", "answer": "a"}]


async def test_files_of_the_folder_of_the_operator(datasets: Datasets, settings: Settings) -> None:
    assert settings.file_root is not None
    (settings.file_root / "rows.jsonl").write_text(LINES)
    (settings.file_root / "rows.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    assert await read(datasets, "lsfs://rows.jsonl") == qa(3)
    assert await read(datasets, f"file://{settings.file_root}/rows.jsonl.gz") == qa(3)
    for bad in ("lsfs://../home/stack.db", "file:///etc/passwd", "ftp://host/x.csv", "lsfs://none.csv"):
        with pytest.raises(BadRequest):
            await read(datasets, bad)


@pytest.fixture
def web() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path != "/none.csv" else 404)
            self.send_header("Content-Type", "text/csv; charset=iso-8859-1")
            self.end_headers()
            self.wfile.write("question,answer\né,a\n".encode("latin-1"))

        def log_message(self, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


async def test_the_web(web: str, settings: Settings, datasets: Datasets) -> None:
    with pytest.raises(BadRequest, match="not a public host"):
        await read(datasets, f"{web}/x")
    allowed = Settings(home=settings.home, egress_allow=web.removeprefix("http://"))
    async with opened(allowed) as datasets:
        assert await read(datasets, f"{web}/x") == [{"question": "é", "answer": "a"}]
        with pytest.raises(BadRequest, match="answers 404"):
            await read(datasets, f"{web}/none.csv")


async def test_too_large(settings: Settings) -> None:
    assert settings.file_root is not None
    (settings.file_root / "rows.jsonl").write_text(LINES * 100)
    small = Settings(home=settings.home, file_root=settings.file_root, max_dataset_gb=1e-6)
    async with opened(small) as datasets:
        with pytest.raises(BadRequest, match="larger than 1073 bytes"):
            await read(datasets, "lsfs://rows.jsonl")
        (settings.file_root / "rows.jsonl.gz").write_bytes(gzip.compress((LINES * 1000).encode()))
        with pytest.raises(BadRequest, match="unpacks to more than 1073 bytes"):
            await read(datasets, "lsfs://rows.jsonl.gz")


async def test_hostile_files_are_read_in_a_child(
    datasets: Datasets, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small parquet file that unpacks to gigabytes, and one that never ends."""
    assert settings.file_root is not None
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 2000), ["x" * (4 << 20)])
    bomb = pa.table({"question": texts, "answer": [""] * 2000})
    pq.write_table(bomb, settings.file_root / "bomb.parquet", compression="zstd", store_schema=False)
    assert (settings.file_root / "bomb.parquet").stat().st_size < 1 << 20
    with pytest.raises(BadRequest, match="memory than it may"):
        await read(datasets, "lsfs://bomb.parquet")
    (settings.file_root / "deep.json").write_bytes(b'[{"a":' * 1_000_000)
    with pytest.raises(BadRequest, match="nested too deep"):
        await read(datasets, "lsfs://deep.json")
    monkeypatch.setattr(sources, "LIMITS", sources.Limits(cpu_s=0.3, wall_s=20, memory_bytes=2 << 30))
    (settings.file_root / "long.jsonl").write_text(LINES * 100_000)
    with pytest.raises(BadRequest, match="takes too long"):
        await read(datasets, "lsfs://long.jsonl")
    assert await datasets._tables.names() == []


async def test_a_cancelled_registration_ends_its_child(datasets: Datasets, settings: Settings) -> None:
    assert settings.file_root is not None
    (settings.file_root / "long.jsonl").write_text(LINES * 1_000_000)
    task = asyncio.create_task(read(datasets, "lsfs://long.jsonl"))
    while not list(sources.working_folders(settings).glob("*/rows.arrow")):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    began = time.perf_counter()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.perf_counter() - began < 2
    assert list(sources.working_folders(settings).iterdir()) == []
    assert await datasets._tables.names() == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("huggingface://a/b", HubDataset("a/b", "train", None, None)),
        ("huggingface://datasets/a/b?split=test&name=c", HubDataset("a/b", "test", "c", None)),
        ("huggingface://squad?config=c&revision=r", HubDataset("squad", "train", "c", "r")),
    ],
)
def test_uris_of_the_hub(text: str, expected: HubDataset) -> None:
    assert HubDataset.parse(text) == expected


@pytest.mark.parametrize("text", ["huggingface://", "huggingface://a/b/c", "huggingface://a/b?x=1"])
def test_bad_uris_of_the_hub(text: str) -> None:
    with pytest.raises(BadRequest, match="write huggingface://owner/name"):
        HubDataset.parse(text)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    for number in range(2):
        table = pa.Table.from_pylist(qa(2, 2 * number))
        pq.write_table(table, folder / f"data/train-0000{number}-of-00002.parquet")
    (folder / "test.jsonl").write_text(LINES)
    (folder / "README.md").write_text("readme")
    (folder / "loader.py").write_text("raise SystemExit")
    plain = tmp_path / "plain"
    plain.mkdir()
    shutil.copy(folder / "test.jsonl", plain / "rows.jsonl")
    hub = Hub({"org/rows": folder, "org/plain": plain, "org/gated": folder}, gated=frozenset({"org/gated"}))
    with hub.serving() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield hub


async def test_the_hub(datasets: Datasets, hub: Hub) -> None:
    assert await read(datasets, "huggingface://org/rows") == qa(4)
    assert await read(datasets, "huggingface://datasets/org/rows?split=test") == qa(3)
    assert await read(datasets, "huggingface://org/plain?split=train") == qa(3)
    for text, problem in {
        "org/rows?split=dev": "nothing for the split 'dev'; it has data/train",
        "org/none": "the hub has no dataset 'org/none'",
        "org/gated": "org/gated is gated",
        "org/rows?revision=no": "no revision 'no'",
    }.items():
        with pytest.raises(StackError, match=problem.replace("?", r"\?")):
            await read(datasets, f"huggingface://{text}")


async def test_parquet_copies_of_the_hub(datasets: Datasets, hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "converted"
    for config, split, first in (("main", "train", 0), ("main", "test", 10), ("other", "train", 20)):
        (folder / config / split).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(qa(2, first)), folder / config / split / "0000.parquet")
    hub.repositories["org/converted"] = folder
    hub.converted.add("org/converted")
    assert await read(datasets, "huggingface://org/converted?config=main&split=test") == qa(2, 10)
    with pytest.raises(BadRequest, match="the configs main, other: add &config="):
        await read(datasets, "huggingface://org/converted")
    with pytest.raises(BadRequest, match="nothing for the split 'dev'; it has test, train"):
        await read(datasets, "huggingface://org/converted?config=main&split=dev")
