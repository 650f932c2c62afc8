from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import insert

from stack.app import create_app
from stack.context import Stack, open_stack
from stack.files.blobs import PART_BYTES
from stack.settings import Settings
from stack.store.tables import files
from tests.api.asgi import Exchange

DATA = random.Random(0).randbytes(PART_BYTES + 100_000)


async def begin(
    client: httpx.AsyncClient, key: str = "a/b.bin", size: int = len(DATA), **fields: Any
) -> dict[str, Any]:
    body = {"bucket": "b", "key": key, "mime_type": "application/x-test", "size": size, **fields}
    answer = await client.post("/v1/files", json=body)
    assert answer.status_code == 200, answer.text
    session: dict[str, Any] = answer.json()
    return session


async def upload(client: httpx.AsyncClient, data: bytes = DATA, **fields: Any) -> dict[str, Any]:
    session = await begin(client, size=len(data), **fields)
    answer = await client.post(session["url"], content=data)
    assert answer.status_code == 200, answer.text
    file: dict[str, Any] = answer.json()
    return file


async def detail(answer: httpx.Response, status: int) -> str:
    body = answer.json()
    assert (answer.status_code, body["status"]) == (status, status), body
    return str(body["detail"])


async def test_uploads_in_parts_and_reads_back(client: httpx.AsyncClient) -> None:
    session = await begin(client)
    assert session == {
        "id": session["id"], "url": f"http://stack/v1/files/session:{session['id']}",
        "offset": 0, "size": len(DATA),
    }  # fmt: skip
    first = await client.post(session["url"], content=DATA[:1000])
    assert (first.status_code, first.json(), first.headers["upload-offset"]) == (200, None, "1000")
    assert (await client.get(session["url"])).json() == session | {"offset": 1000}
    assert (await client.get("/v1/files/b/a/b.bin")).status_code == 404
    last = await client.post(session["url"], content=DATA[1000:])
    file = last.json()
    assert file == {
        "bucket": "b", "key": "a/b.bin", "mime_type": "application/x-test", "bytes": len(DATA),
        "url": "http://stack/v1/files/content:b/a/b.bin", "created_at": file["created_at"],
    }  # fmt: skip
    assert abs(file["created_at"] - time.time()) < 60
    for path in ("/v1/files/b/a/b.bin", "/v1/files/b/a%2Fb.bin"):
        assert (await client.get(path)).json() == file
    assert (await client.get("/v1/files/b")).json() == {"data": [file]}
    assert (await client.get(file["url"])).content == DATA


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "application/octet-stream",
        "application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
    ],
)
async def test_takes_bytes_under_any_content_type(
    client: httpx.AsyncClient, content_type: str | None
) -> None:
    data = b'{"not json\xff'
    session = await begin(client, size=len(data))
    headers = {"content-type": content_type} if content_type else {}
    answer = await client.post(session["url"], content=data, headers=headers)
    assert answer.status_code == 200, answer.text
    assert (await client.get(answer.json()["url"])).content == data


async def test_a_file_of_no_bytes(client: httpx.AsyncClient) -> None:
    session = await begin(client, size=0)
    assert (session["offset"], session["size"]) == (0, 0)
    file = (await client.get("/v1/files/b/a/b.bin")).json()
    assert file["bytes"] == 0
    assert (await client.post(session["url"])).json() == file
    answer = await client.get(file["url"])
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")
    assert (await client.get(file["url"], headers={"range": "bytes=0-"})).status_code == 416


async def test_refusals_say_what_to_do(client: httpx.AsyncClient) -> None:
    session = await begin(client, size=10)
    await client.post(session["url"], content=b"abc")
    answer = await client.post(session["url"], content=b"x" * 8)
    assert "at most 7 more" in await detail(answer, 400)
    answer = await client.post(session["url"], content=b"abc", headers={"upload-offset": "0"})
    assert "at offset 3, not at 0" in await detail(answer, 400)
    answer = await client.post(session["url"], content=b"abc", headers={"upload-offset": "x"})
    assert "Upload-Offset is a number" in await detail(answer, 400)
    answer = await client.post("/v1/files/session:none", content=b"abc")
    assert "POST /v1/files" in await detail(answer, 404)
    await detail(await client.get("/v1/files/session:none"), 404)
    assert "'none' in the bucket 'b'" in await detail(await client.get("/v1/files/b/none"), 404)
    await detail(await client.delete("/v1/files/b/none"), 404)
    await detail(await client.get("/v1/files/content:b/none"), 404)
    await client.post(session["url"], content=b"defghij", headers={"upload-offset": "3"})
    assert (await client.get("/v1/files/content:b/a/b.bin")).content == b"abcdefghij"


@pytest.mark.parametrize(
    "fields",
    [{"bucket": "a/b"}, {"bucket": ".."}, {"bucket": ""}, {"key": ""}, {"key": "../x"}, {"key": "a\nb"},
     {"key": "ä"},
     {"size": -1}, {"size": 1.5}, {"size": 1 << 60}, {"size": 1 << 80}, {"mime_type": "x"},
     {"mime_type": "a/b\r\nx: y"}],
)  # fmt: skip
async def test_refuses_what_cannot_be_a_file(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    body = {"bucket": "b", "key": "k", "mime_type": "text/plain", "size": 1, **fields}
    await detail(await client.post("/v1/files", json=body), 400)


async def test_a_body_over_the_limit_is_to_be_sent_in_parts(client: httpx.AsyncClient) -> None:
    session = await begin(client, size=1 << 30)
    answer = await client.post(session["url"], content=b"", headers={"content-length": str(65 << 20)})
    assert "in several requests" in await detail(answer, 413)


async def test_lists_buckets(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/files")).json() == {"data": []}
    for bucket in ("two", "one", "other"):
        await upload(client, b"x", bucket=bucket)
    for query, names in (
        ("", ["one", "other", "two"]),
        ("?bucket=", ["one", "other", "two"]),
        ("?bucket=o", ["one", "other"]),
    ):
        answer = (await client.get(f"/v1/files{query}")).json()
        assert answer == {"data": [{"name": name} for name in names]}
    assert (await client.get("/v1/files/none")).json() == {"data": []}
    await detail(await client.get("/v1/files/a.b"), 400)


async def test_deletes(client: httpx.AsyncClient, settings: Settings) -> None:
    file = await upload(client)
    assert (await client.delete("/v1/files/b/a/b.bin")).json() == file
    assert (await client.get(file["url"])).status_code == 404
    assert (await client.get("/v1/files/b")).json() == {"data": []}
    assert [path for path in (settings.home / "storage").rglob("*") if path.is_file()] == []


async def test_the_last_upload_counts(client: httpx.AsyncClient) -> None:
    first = (await client.get((await upload(client))["url"])).headers["etag"]
    file = await upload(client, b"<script>", mime_type="text/html")
    answer = await client.get(file["url"], headers={"range": "bytes=1-2", "if-range": first})
    assert (answer.status_code, answer.content) == (200, b"<script>")


async def test_content_is_safe_in_a_browser(client: httpx.AsyncClient) -> None:
    file = await upload(client, b"<script>", mime_type="text/html")
    answer = await client.get(file["url"])
    assert answer.headers["content-type"] == "text/html"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"


async def test_reads_ranges(client: httpx.AsyncClient) -> None:
    url = (await upload(client))["url"]
    whole = await client.get(url)
    assert (whole.headers["accept-ranges"], whole.headers["content-length"]) == ("bytes", str(len(DATA)))
    start, end = PART_BYTES - 10, PART_BYTES + 10
    part = await client.get(
        url, headers={"range": f"bytes={start}-{end - 1}", "if-range": whole.headers["etag"]}
    )
    assert (part.status_code, part.content) == (206, DATA[start:end])
    assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
    assert part.headers["content-length"] == "20"
    past = await client.get(url, headers={"range": f"bytes={len(DATA)}-"})
    assert f"{len(DATA)} bytes" in await detail(past, 416)
    assert past.headers["content-range"] == f"bytes */{len(DATA)}"
    head = await client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(DATA))
    same = await client.get(url, headers={"if-none-match": whole.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")


async def test_lost_bytes_are_an_error_and_not_an_empty_file(client: httpx.AsyncClient, stack: Stack) -> None:
    url = (await upload(client))["url"]
    await stack.storage.delete(await stack.storage.find("files"))
    assert "gone" in await detail(await client.get(url), 500)


async def test_a_broken_connection_loses_nothing_that_came(app: FastAPI, client: httpx.AsyncClient) -> None:
    session = await begin(client)
    path = "/v1/files/session:" + session["id"]
    exchange = Exchange(app, "POST", path, headers={"content-length": str(len(DATA))})
    exchange._incoming.get_nowait()  # its body comes below
    for start in range(0, PART_BYTES + 5000, 1000):
        exchange.put({"type": "http.request", "body": DATA[start : start + 1000], "more_body": True})
    exchange.disconnect()
    await asyncio.wait_for(exchange.task, 10)
    offset = (await client.get(session["url"])).json()["offset"]
    assert offset == len(range(0, PART_BYTES + 5000, 1000)) * 1000
    answer = await client.post(session["url"], content=DATA[offset:], headers={"upload-offset": str(offset)})
    assert (await client.get(answer.json()["url"])).content == DATA


async def test_a_client_that_stands_still_is_given_up(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stack.api.files.IDLE_S", 0.2)
    session = await begin(client, size=100)
    exchange = Exchange(app, "POST", "/v1/files/session:" + session["id"], headers={"content-length": "50"})
    exchange._incoming.get_nowait()
    exchange.put({"type": "http.request", "body": b"x" * 10, "more_body": True})
    await asyncio.wait_for(exchange.task, 10)
    assert exchange.status == 504
    assert b"at offset 10" in exchange.bodies[0]


@pytest.fixture
async def other(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """Another replica of the same stack."""
    app = create_app(lambda: open_stack(settings))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://other") as client,
    ):
        yield client


async def test_two_replicas_are_one_server(client: httpx.AsyncClient, other: httpx.AsyncClient) -> None:
    session = await begin(client)
    path = "/v1/files/session:" + session["id"]
    await client.post(path, content=DATA[:50_000])
    assert (await other.get(path)).json()["offset"] == 50_000
    file = (await other.post(path, content=DATA[50_000:])).json()
    assert file["url"] == "http://other/v1/files/content:b/a/b.bin"
    assert (await client.get("/v1/files/content:b/a/b.bin")).content == DATA
    await client.delete("/v1/files/b/a/b.bin")
    assert (await other.get("/v1/files/b/a/b.bin")).status_code == 404


async def test_an_upload_goes_on_after_a_restart(settings: Settings) -> None:
    path, offset = "", 0
    for part in (DATA[:70_000], DATA[70_000:]):
        app = create_app(lambda: open_stack(settings))
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://stack") as client,
        ):
            path = path or "/v1/files/session:" + (await begin(client))["id"]
            assert (await client.get(path)).json()["offset"] == offset
            answer = await client.post(path, content=part)
            offset += len(part)
    assert answer.json()["bytes"] == len(DATA)


async def test_public_url(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "public", public_url="https://public.example/")
    app = create_app(lambda: open_stack(settings))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://stack") as client,
    ):
        session = await begin(client, size=0)
        assert session["url"].startswith("https://public.example/v1/files/session:")
        file = (await client.get("/v1/files/b/a/b.bin")).json()
        assert file["url"] == "https://public.example/v1/files/content:b/a/b.bin"


async def test_ten_thousand_files_are_listed_quickly(client: httpx.AsyncClient, stack: Stack) -> None:
    rows = [
        {"bucket": "b", "key": f"k/{number:05}", "blob": str(number), "mime_type": "text/plain", "size": 1,
         "created_at": datetime.now(UTC)}
        for number in range(10_000)
    ]  # fmt: skip
    async with stack.database.write() as connection:
        await connection.execute(insert(files), rows)
    begun = time.perf_counter()
    data = (await client.get("/v1/files/b")).json()["data"]
    buckets = (await client.get("/v1/files")).json()["data"]
    assert time.perf_counter() - begun < 2
    assert [file["key"] for file in data] == [row["key"] for row in rows]
    assert buckets == [{"name": "b"}]


async def test_the_declared_parameter_and_body_are_the_specs(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert paths["/v1/files"]["get"]["parameters"][0]["required"]
    body = paths["/v1/files/session:{upload_id}"]["post"]["requestBody"]["content"]
    assert list(body) == ["application/octet-stream"]
    assert not any("content:" in path for path in paths)
