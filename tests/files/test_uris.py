from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from importlib import import_module
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from stack.errors import BadRequest, Timeout, UpstreamError
from stack.files.files import NoFile
from stack.files.uris import canonical_uri, content_url, guess_type, open_uri
from stack.settings import Settings
from tests.files.conftest import Shelf, open_shelf


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[Shelf]:
    settings = Settings(
        home=tmp_path / "home", file_root=tmp_path / "root", object_roots="s3://bucket, gs://bucket/"
    )
    async with open_shelf(settings) as opened:
        yield opened


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder that may be read, with a file in it and one beside it."""
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a b.csv").write_text("x,y\n")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "root-2").mkdir()
    (tmp_path / "root-2" / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "link").symlink_to(tmp_path)
    (folder / "ring").symlink_to(folder / "ring")
    (folder / "inside.csv").symlink_to(folder / "sub" / "a b.csv")
    return folder


async def read(shelf: Shelf, uri: str, max_bytes: int = 1 << 20, timeout_s: float = 5) -> tuple[str, bytes]:
    async with open_uri(uri, shelf.files, shelf.settings, max_bytes=max_bytes, timeout_s=timeout_s) as found:
        return found.content_type, b"".join([chunk async for chunk in found.chunks])


@pytest.mark.parametrize(
    "uri",
    [
        "lsfs://sub/a b.csv",
        "lsfs://sub/a%20b.csv",
        "lsfs:///sub/a%20b.csv",
        "LSFS://sub/../sub/a b.csv",
        "lsfs://inside.csv",
    ],
)
async def test_reads_the_folder(shelf: Shelf, root: Path, uri: str) -> None:
    assert await read(shelf, uri) == ("text/csv", b"x,y\n")


async def test_reads_the_folder_by_absolute_path(shelf: Shelf, root: Path) -> None:
    for host in ("", "localhost"):
        assert await read(shelf, f"file://{host}{root}/sub/a%20b.csv") == ("text/csv", b"x,y\n")


@pytest.mark.parametrize(
    "uri",
    [
        "lsfs://../secret.txt", "lsfs://%2e%2e/secret.txt", "lsfs://sub/../../secret.txt", "lsfs://..%2Fsecret.txt",
        "lsfs://../root-2/secret.txt", "lsfs://link.txt", "lsfs://link/secret.txt", "lsfs://ring", "lsfs://none",
        "lsfs://a%00b", "lsfs://sub", "lsfs://", "lsfs:", "file:///etc/passwd", "file://localhost/etc/passwd",
        "file:///proc/self/environ", "file://etc/passwd", "file:etc/passwd", "file://ROOT/../secret.txt",
        "file://ROOT/link.txt", "file://ROOT/%2e%2e/secret.txt", "FILE:///etc/passwd",
    ],
)  # fmt: skip
async def test_reads_nothing_outside_the_folder(shelf: Shelf, root: Path, uri: str) -> None:
    with pytest.raises(BadRequest) as caught:
        await read(shelf, uri.replace("ROOT", str(root)))
    assert "root-" not in str(caught.value).replace(uri, "")


async def test_what_is_outside_is_the_same_whether_it_exists(shelf: Shelf, root: Path) -> None:
    told = []
    for name in ("passwd", "passwe"):
        with pytest.raises(BadRequest) as caught:
            await read(shelf, f"file:///etc/{name}")
        told.append(str(caught.value).replace(name, ""))
    assert told[0] == told[1]


async def test_a_pipe_is_no_file(shelf: Shelf, root: Path) -> None:
    os.mkfifo(root / "pipe")
    async with asyncio.timeout(2):
        with pytest.raises(BadRequest):
            await read(shelf, "lsfs://pipe")


async def test_without_a_folder_nothing_is_read(shelf: Shelf, root: Path) -> None:
    none = Settings(home=shelf.settings.home)
    for uri in ("file:///etc/passwd", f"file://{root}/sub/a%20b.csv", "lsfs://sub/a%20b.csv"):
        with pytest.raises(BadRequest, match="STACK_FILE_ROOT"):
            async with open_uri(uri, shelf.files, none, max_bytes=10, timeout_s=1):
                pass


async def test_reads_uploaded_files(shelf: Shelf) -> None:
    await shelf.upload("a/b.csv", b"x" * 100, mime_type="Text/CSV; charset=latin-1")
    async with open_uri(
        "files://b/a/b.csv", shelf.files, shelf.settings, max_bytes=100, timeout_s=1
    ) as found:
        assert (found.content_type, found.charset) == ("text/csv", "latin-1")
        assert b"".join([chunk async for chunk in found.chunks]) == b"x" * 100
    with pytest.raises(NoFile):
        await read(shelf, "files://b/none")
    for uri in ("files://", "files://b", "files://b/../b/a/b.csv", "files:///a/b.csv"):
        with pytest.raises(BadRequest):
            await read(shelf, uri)


async def test_reads_data_urls(shelf: Shelf) -> None:
    assert await read(shelf, "data:text/csv;base64,eCx5") == ("text/csv", b"x,y")
    assert await read(shelf, "DATA:,a%20b") == ("text/plain", b"a b")


async def test_bounds_what_it_reads(shelf: Shelf, root: Path) -> None:
    (root / "large").write_bytes(b"x" * 1001)
    await shelf.upload("large", b"x" * 1001)
    for uri in ("lsfs://large", "files://b/large", "data:," + "x" * 1001):
        with pytest.raises(BadRequest, match="1000 bytes"):
            await read(shelf, uri, max_bytes=1000)
        assert len((await read(shelf, uri, max_bytes=1001))[1]) == 1001


async def test_bounds_the_time(shelf: Shelf, root: Path) -> None:
    with pytest.raises(Timeout, match=r"longer than 0\.05 s"):
        async with open_uri("lsfs://inside.csv", shelf.files, shelf.settings, max_bytes=9, timeout_s=0.05):
            await asyncio.sleep(5)


@pytest.mark.parametrize(
    "uri", ["", "x", "/etc/passwd", "ftp://host/x", "memory://x", "huggingface://x", "s3a://x", "local://x"]
)
async def test_refuses_other_kinds(shelf: Shelf, uri: str) -> None:
    with pytest.raises(BadRequest, match="of no kind that is read here"):
        await read(shelf, uri)


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:1/x", "http://localhost:1/x", "http://[::1]:1/", "http://169.254.169.254/latest/meta-data",
        "http://2130706433:1/", "http://0x7f.1:1/", "http://0177.0.0.1:1/", "http://[::ffff:127.0.0.1]:1/",
        "http://127.1:1/", "http://10.0.0.1/", "http://user:secret@127.0.0.1/", "HTTP://127.0.0.1:1/",
        "http:127.0.0.1",
    ],
)  # fmt: skip
async def test_refuses_private_hosts(shelf: Shelf, uri: str) -> None:
    with pytest.raises(BadRequest) as caught:
        await read(shelf, uri)
    assert "secret" not in str(caught.value)


async def _serve(answer: bytes) -> asyncio.Server:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(handle, "127.0.0.1", 0)


async def test_refuses_a_redirect_to_a_private_host(shelf: Shelf) -> None:
    inner = await _serve(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret")
    to = f"http://127.0.0.1:{inner.sockets[0].getsockname()[1]}/"
    outer = await _serve(f"HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n".encode())
    port = outer.sockets[0].getsockname()[1]
    allowed = Settings(home=shelf.settings.home, egress_allow=f"127.0.0.1:{port}")
    async with inner, outer:
        with pytest.raises(BadRequest, match="not a public host"):
            async with open_uri(f"http://127.0.0.1:{port}/", shelf.files, allowed, max_bytes=99, timeout_s=5):
                pass


class Objects(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """What an object store's driver does, as far as this program sees it."""

    protocol = ("s3",)
    store: dict[str, object] = {}  # noqa: RUF012
    fails: type[Exception] | None = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("s3://").strip("/")

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **options: object
    ) -> bytes:
        return bytes(super().cat_file(path, start, end, **options))

    def info(self, path: str, **options: object) -> dict[str, object]:
        if self.fails:
            raise self.fails("AKIA-secret")
        return dict(super().info(path, **options))


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> type[Objects]:
    monkeypatch.setitem(import_module("fsspec.registry")._registry, "s3", Objects)
    Objects.store.clear()
    monkeypatch.setattr(Objects, "fails", None)
    return Objects


async def test_reads_object_stores(shelf: Shelf, objects: type[Objects]) -> None:
    data = os.urandom(3 << 20)
    objects().pipe_file("/bucket/a/b.parquet", data)
    found = await read(shelf, "s3://bucket/a/b.parquet", max_bytes=len(data))
    assert found == ("application/vnd.apache.parquet", data)
    with pytest.raises(BadRequest, match="larger than"):
        await read(shelf, "s3://bucket/a/b.parquet", max_bytes=len(data) - 1)
    for missing in ("s3://bucket/none", "s3://bucket/a", "s3://bucket/x::file:///etc/passwd"):
        with pytest.raises(BadRequest, match="nothing at"):
            await read(shelf, missing)


@pytest.mark.parametrize(
    "uri",
    ["s3://other/x", "s3://bucket-2/x", "s3://bucket", "s3://", "s3://bucket/../other/x", "gs://other/x"],
)
async def test_reads_only_the_objects_that_the_operator_names(
    shelf: Shelf, objects: type[Objects], uri: str
) -> None:
    objects().pipe_file("/other/x", b"secret")
    with pytest.raises(BadRequest, match="STACK_OBJECT_ROOTS"):
        await read(shelf, uri)


@pytest.mark.parametrize(("raised", "told"), [(PermissionError, BadRequest), (OSError, UpstreamError)])
async def test_tells_what_an_object_store_refuses(
    shelf: Shelf,
    objects: type[Objects],
    monkeypatch: pytest.MonkeyPatch,
    raised: type[Exception],
    told: type[Exception],
) -> None:
    monkeypatch.setattr(objects, "fails", raised)
    with pytest.raises(told) as caught:
        await read(shelf, "s3://bucket/x")
    assert "secret" not in str(caught.value)


async def test_a_driver_that_is_not_installed_is_named(shelf: Shelf) -> None:
    try:
        import gcsfs  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        with pytest.raises(BadRequest, match="pip install gcsfs"):
            await read(shelf, "gs://bucket/x")


@pytest.mark.parametrize(
    ("name", "guessed"),
    [
        ("a.csv", "text/csv"), ("a.JSONL", "application/jsonl"),
        ("a.parquet", "application/vnd.apache.parquet"),
        ("a.md", "text/markdown"), ("a.csv.gz", "application/gzip"), ("a.pdf", "application/pdf"), ("a", ""),
        ("a.qqq", ""),
    ],
)  # fmt: skip
def test_guesses_types(name: str, guessed: str) -> None:
    assert guess_type(name) == guessed


@pytest.mark.parametrize(
    ("uri", "canonical"),
    [
        ("http://stack:8321/v1/files/content:b/a/b.csv", "files://b/a/b.csv"),
        ("HTTP://Stack:8321/v1/files/content:b/a%2Fb.csv", "files://b/a/b.csv"),
        ("https://public.example/v1/files/content:b/k", "files://b/k"),
        ("https://public.example:443/v1/files/content:b/k", "files://b/k"),
        ("http://public.example/v1/files/content:b/k", None),
        ("http://stack:8322/v1/files/content:b/k", None),
        ("http://stack.evil:8321/v1/files/content:b/k", None),
        ("http://stack:8321/v1/files/b/k", None),
        ("http://stack:99999/v1/files/content:b/k", None),
        ("files://b/k", None),
        ("data:,x", None),
        ("", None),
    ],
)
def test_knows_its_own_urls(uri: str, canonical: str | None, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, public_url="https://public.example/")
    assert canonical_uri(uri, "http://stack:8321/", settings) == (canonical or uri)
    assert (
        canonical_uri(content_url("http://stack:8321", "b", "k"), "http://stack:8321/", settings)
        == "files://b/k"
    )


def test_knows_its_own_urls_below_a_path(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, public_url="https://public.example/llama/")
    own = content_url("https://public.example/llama", "b", "a/k")
    assert canonical_uri(own, "http://stack:8321/", settings) == "files://b/a/k"
    other = content_url("https://public.example", "b", "k")
    assert canonical_uri(other, "http://stack:8321/", settings) == other
