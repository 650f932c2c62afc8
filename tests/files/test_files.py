from __future__ import annotations

import os
import pickle

import pytest

from stack.errors import BadRequest
from stack.files import blobs, uploads
from stack.files.files import NoFile
from stack.files.uploads import NoUpload
from stack.store.storage import Lost
from tests.files.conftest import Shelf, open_shelf, read

KEYS = ["a", "A", "a/b", "a/b/c.txt", "a.b", "/a", "a/", "a//b", "...", "..a", ".hidden", "-", "x" * 1024]


async def test_no_two_keys_are_the_same_file(shelf: Shelf) -> None:
    for number, key in enumerate(KEYS):
        await shelf.upload(key, f"contents {number}".encode())
    for number, key in enumerate(KEYS):
        assert await shelf.contents(key) == f"contents {number}".encode()
    assert [file.key for file in await shelf.files.in_bucket("b")] == sorted(KEYS)
    assert await shelf.files.in_bucket("B") == []


@pytest.mark.parametrize(
    "key", ["", "..", "../x", "a/../../c/x", "a/.", "./a", "a b", "a\n", "ä", "a%2e", "a\0", "a:b"]
)
async def test_refuses_a_key_that_the_spec_or_a_url_has_not(shelf: Shelf, key: str) -> None:
    with pytest.raises(BadRequest, match="file's key"):
        await shelf.uploads.create("b", key, "text/plain", 1)
    with pytest.raises(BadRequest, match="file's key"):
        await shelf.files.get("b", key)
    with pytest.raises(BadRequest, match="file's key"):
        await shelf.files.delete("b", key)


@pytest.mark.parametrize("bucket", ["", "..", "a/b", "a.b", "a b", "a\n", "x" * 256])
async def test_refuses_a_bucket_that_the_spec_has_not(shelf: Shelf, bucket: str) -> None:
    with pytest.raises(BadRequest, match="bucket's name"):
        await shelf.uploads.create(bucket, "k", "text/plain", 1)
    with pytest.raises(BadRequest, match="bucket's name"):
        await shelf.files.in_bucket(bucket)


@pytest.mark.parametrize(
    "mime_type",
    [
        "",
        "text",
        "text/",
        "/x",
        "a/b/c",
        "text/html\r\nset-cookie: a=b",
        'text/html;\r\n\r\na="<b>"',
        "text/plain;",
        "a/ü",
        "a/" + "b" * 300,
    ],
)
async def test_refuses_what_is_no_mime_type(shelf: Shelf, mime_type: str) -> None:
    with pytest.raises(BadRequest, match="mime_type"):
        await shelf.uploads.create("b", "k", mime_type, 1)


@pytest.mark.parametrize(
    "mime_type", ["text/csv; charset=utf-8", 'text/plain;x="a b"', "application/vnd.a+json"]
)
async def test_takes_mime_types_with_parameters(shelf: Shelf, mime_type: str) -> None:
    await shelf.upload("k", b"x", mime_type=mime_type)
    assert (await shelf.files.get("b", "k")).mime_type == mime_type


async def test_lists_buckets_by_prefix(shelf: Shelf) -> None:
    for bucket in ("b_2", "a", "b-1", "B"):
        await shelf.upload("k", b"x", bucket=bucket)
    assert await shelf.files.buckets() == ["B", "a", "b-1", "b_2"]
    assert await shelf.files.buckets("b") == ["b-1", "b_2"]
    assert await shelf.files.buckets("b_") == ["b_2"]
    with pytest.raises(BadRequest):
        await shelf.files.buckets("%")


async def test_a_replaced_file_is_freed(shelf: Shelf) -> None:
    await shelf.upload("k", b"old" * 1000)
    first = await shelf.files.get("b", "k")
    await shelf.upload("k", b"new", mime_type="text/csv")
    file = await shelf.files.get("b", "k")
    assert (file.mime_type, file.size) == ("text/csv", 3)
    assert file.blob != first.blob
    assert await shelf.contents("k") == b"new"
    assert len(await shelf.objects()) == 1
    with pytest.raises(Lost):
        await read(shelf.files, first)


async def test_a_deleted_file_is_gone_and_freed(shelf: Shelf) -> None:
    await shelf.upload("k", b"x" * 100)
    deleted = await shelf.files.delete("b", "k")
    assert deleted.size == 100
    assert await shelf.objects() == []
    assert await shelf.files.buckets() == []
    for missing in (shelf.files.get, shelf.files.delete):
        with pytest.raises(NoFile, match="there is no file 'k' in the bucket 'b'"):
            await missing("b", "k")


async def test_everything_is_there_after_a_restart(shelf: Shelf) -> None:
    await shelf.upload("k", b"contents")
    async with open_shelf(shelf.settings) as other:
        assert await other.contents("k") == b"contents"
        await other.files.delete("b", "k")
    with pytest.raises(NoFile):
        await shelf.files.get("b", "k")


async def test_bytes_that_are_gone_are_not_made_up(shelf: Shelf) -> None:
    await shelf.upload("k", b"contents")
    await shelf.storage.delete(await shelf.objects())
    with pytest.raises(Lost, match="gone"):
        await shelf.contents("k")


async def test_reads_any_range(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (blobs, uploads):
        monkeypatch.setattr(module, "PART_BYTES", 16)
    data = os.urandom(100)
    await shelf.upload("k", data)
    assert len(await shelf.objects()) == 7
    file = await shelf.files.get("b", "k")
    for start in range(0, 100, 7):
        for end in range(start, 101, 5):
            assert await read(shelf.files, file, start, end) == data[start:end]


def test_errors_cross_processes() -> None:
    for error in (NoFile("b", "k"), NoUpload("i"), Lost()):
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
