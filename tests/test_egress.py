"""Against real servers on loopback; what is refused is refused before a packet leaves."""

from __future__ import annotations

import asyncio
import base64
import gzip
import ipaddress
import socket
import time
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from stack import egress
from stack.errors import BadRequest, StackError, Timeout, UpstreamError
from stack.schemas.common import URL
from stack.schemas.content import ImageSource

Reply = tuple[int, dict[str, str], bytes]
PNG = base64.b64decode("iVBORw0KGgo=")


class Server:
    """Answers by path; remembers what it was asked."""

    def __init__(self) -> None:
        self.replies: dict[str, Reply] = {}
        self.slow: dict[str, float] = {}  # seconds before each byte of a path's body
        self.requests: list[dict[str, str]] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def allowed(self) -> set[str]:
        return {f"127.0.0.1:{self.port}"}

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            path = head[0].split(" ")[1]
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
            self.requests.append({"path": path, **headers})
            status, extra, body = self.replies.get(path.partition("?")[0], (404, {}, b""))
            lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close"]
            lines += [f"{name}: {value}" for name, value in extra.items()]
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            for i in range(len(body)) if path in self.slow else ():
                await asyncio.sleep(self.slow[path])
                writer.write(body[i : i + 1])
                await writer.drain()
            if path not in self.slow:
                writer.write(body)
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    yield server
    listener.close()


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, list[str]]], list[str]]:
    """Give names addresses; returns the names that are asked for, in order."""
    asked: list[str] = []

    def install(addresses: dict[str, list[str]]) -> list[str]:
        async def getaddrinfo(self: Any, host: str, port: int, **_: object) -> list[Any]:
            asked.append(host)
            if host not in addresses:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [
                (socket.AF_INET6 if ":" in a else socket.AF_INET, 1, 6, "", (a, port))
                for a in addresses[host]
            ]

        monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
        return asked

    return install


async def get(server: Server, path: str, max_bytes: int = 1000, timeout_s: float = 5) -> egress.Fetched:
    return await egress.fetch(
        server.url + path, max_bytes=max_bytes, timeout_s=timeout_s, allowed=server.allowed
    )


async def test_an_allowed_host_is_fetched(server: Server) -> None:
    server.replies["/a"] = 200, {"Content-Type": "Text/Plain; charset=utf-8"}, b"hello"
    fetched = await get(server, "/a")
    assert (fetched.content, fetched.content_type, fetched.charset) == (b"hello", "text/plain", "utf-8")
    assert server.requests[0]["host"] == f"127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192", "198.18.0.1", "192.0.2.1",
        "203.0.113.9", "224.0.0.1", "240.0.0.1", "255.255.255.255", "168.63.129.16", "::", "::1",
        "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1", "2002:7f00:1::", "2001::1",
        "2001:db8::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "100::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not egress.is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_addresses_that_are_public(address: str) -> None:
    assert egress.is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "0.0.0.0", "localhost.",
        "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.0.0.1.", "１２７.0.0.1",
        "①②⑦.0.0.1", "[fe80::1%25lo]", "127。0。0。1",
    ],
)  # fmt: skip
async def test_loopback_in_all_spellings_is_refused(server: Server, host: str) -> None:
    with pytest.raises(StackError):
        await egress.fetch(f"http://{host}:{server.port}/", max_bytes=10, allowed=())
    assert server.requests == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://example.com/", "not ftp"),
        ("file:///etc/passwd", "not file"),
        ("gopher://example.com", "not gopher"),
        ("example.com/a", "without a scheme"),
        ("", "without a scheme"),
        ("http://", "names no host"),
        ("http://user:secret@example.com/", "header"),
        ("http://exa mple.com/\x00", "not a URL"),
        ("http://a/\ud800", "not a URL"),
        ("http://a:99999/", "not 99999"),
        ("http://" + "a" * 70 + ".com/", "not a URL|host"),
    ],
)
async def test_urls_that_are_not_fetched(url: str, reason: str) -> None:
    with pytest.raises(StackError, match=reason) as error:
        await egress.fetch(url, max_bytes=10, allowed=())
    assert "secret" not in str(error.value)


async def test_a_name_of_a_private_address_is_refused(server: Server, resolve: Any) -> None:
    resolve({"innocent.example": ["8.8.8.8", "127.0.0.1"]})
    with pytest.raises(BadRequest, match=r"innocent\.example is not a public host") as error:
        await egress.fetch(f"http://innocent.example:{server.port}/", max_bytes=10, allowed=())
    assert "8.8.8.8" not in str(error.value)
    assert server.requests == []


async def test_a_name_is_resolved_once_and_kept_in_the_host_header(server: Server, resolve: Any) -> None:
    asked = resolve({"model.example": ["127.0.0.1"]})
    server.replies["/"] = 200, {}, b"ok"
    url = f"http://Model.Example:{server.port}/"
    fetched = await egress.fetch(url, max_bytes=10, allowed={"model.example"})
    assert fetched.content == b"ok"
    assert asked == ["model.example"]
    assert server.requests[0]["host"] == f"model.example:{server.port}"


async def test_the_next_address_is_tried(server: Server, resolve: Any) -> None:
    resolve({"model.example": ["::1", "127.0.0.1"]})  # nothing listens at ::1
    server.replies["/"] = 200, {}, b"ok"
    fetched = await egress.fetch(
        f"http://model.example:{server.port}/", max_bytes=9, allowed={"model.example"}
    )
    assert fetched.content == b"ok"


async def test_an_unknown_host_is_an_upstream_error(resolve: Any) -> None:
    resolve({})
    with pytest.raises(UpstreamError, match="the host is unknown"):
        await egress.fetch("http://nowhere.example/?key=secret", max_bytes=10, allowed=())


async def test_redirects_are_followed_and_checked_again(server: Server) -> None:
    server.replies["/a"] = 302, {"Location": "/b"}, b""
    server.replies["/b"] = 200, {}, b"b"
    assert (await get(server, "/a")).url == f"{server.url}/b"
    for target in (
        "http://127.0.0.2/",
        "http://localhost/",
        "http://[::1]/",
        "file:///etc/passwd",
        "http://2130706433/",
    ):
        server.replies["/a"] = 302, {"Location": target}, b""
        with pytest.raises(BadRequest):
            await get(server, "/a")
    server.replies["/a"] = 302, {"Location": "/a"}, b""
    with pytest.raises(BadRequest, match="redirects more than 5 times"):
        await get(server, "/a")


async def test_headers_do_not_follow_a_redirect_to_another_host(server: Server) -> None:
    server.replies["/a"] = 302, {"Location": f"http://localhost:{server.port}/b"}, b""
    server.replies["/b"] = 200, {}, b"b"
    await egress.fetch(
        f"{server.url}/a",
        max_bytes=10,
        headers={"Authorization": "Bearer k"},
        allowed={"127.0.0.1", "localhost"},
    )
    assert [request.get("authorization") for request in server.requests] == ["bearer k", None]


async def test_size_is_bounded(server: Server) -> None:
    server.replies["/"] = 200, {}, b"x" * 1001
    with pytest.raises(BadRequest, match="larger than 1000 bytes"):
        await get(server, "/")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_compressed_answers_are_decoded(server: Server, encoding: str) -> None:
    body = gzip.compress(b"ab") + gzip.compress(b"c") if encoding == "gzip" else zlib.compress(b"abc")
    server.replies["/"] = 200, {"Content-Encoding": encoding}, body
    assert (await get(server, "/")).content == b"abc"


async def test_a_compression_bomb_is_seen_before_it_bursts(server: Server) -> None:
    import tracemalloc

    bomb = zlib.compress(bytes(200 << 20), 9)
    server.replies["/"] = 200, {"Content-Encoding": "deflate"}, bomb
    tracemalloc.start()
    with pytest.raises(BadRequest, match="larger than 1000 bytes"):
        await get(server, "/")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


async def test_damaged_and_unasked_encodings_are_upstream_errors(server: Server) -> None:
    server.replies["/"] = 200, {"Content-Encoding": "gzip"}, b"not gzip"
    with pytest.raises(UpstreamError, match="damaged gzip"):
        await get(server, "/")
    server.replies["/"] = 200, {"Content-Encoding": "br"}, b"brotli"
    with pytest.raises(UpstreamError, match="'br', which was not asked for"):
        await get(server, "/")


async def test_time_is_bounded_in_all_although_each_byte_comes_soon(server: Server) -> None:
    server.replies["/"] = 200, {}, b"x" * 100
    server.slow["/"] = 0.05
    started = time.monotonic()
    with pytest.raises(Timeout, match=r"longer than 0\.3 s"):
        await get(server, "/", timeout_s=0.3)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("status", "error"), [(404, BadRequest), (403, BadRequest), (429, UpstreamError), (503, UpstreamError)]
)
async def test_statuses(server: Server, status: int, error: type[StackError]) -> None:
    server.replies["/"] = status, {}, b"secret body"
    with pytest.raises(error, match=str(status)) as raised:
        await get(server, "/?key=secret")
    assert "secret" not in str(raised.value)


async def test_an_answer_that_breaks_off(server: Server) -> None:
    server.replies["/"] = 200, {"Content-Length": "100"}, b"x"
    with pytest.raises(UpstreamError, match="broke off"):
        await get(server, "/")


async def test_the_environment_s_proxies_are_not_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    server.replies["/"] = 200, {}, b"direct"
    assert (await get(server, "/")).content == b"direct"


async def test_a_client_of_its_own_keeps_connections_apart_by_name(server: Server, resolve: Any) -> None:
    resolve({"a.example": ["127.0.0.1"], "b.example": ["127.0.0.1"]})
    server.replies["/"] = 200, {}, b"ok"
    transport = egress.EgressTransport({f"a.example:{server.port}"})
    async with httpx.AsyncClient(transport=transport) as client:
        assert (await client.get(f"http://a.example:{server.port}/")).text == "ok"
        with pytest.raises(BadRequest, match=r"b\.example is not a public host"):
            await client.get(f"http://b.example:{server.port}/")


def test_data_urls() -> None:
    plain = egress.decode_data_url("data:,a%20b", 10)
    assert (plain.content, plain.content_type) == (b"a b", "text/plain")
    coded = egress.decode_data_url("data:image/PNG;charset=x;base64,iVBORw0KGgo=", 10)
    assert (coded.content, coded.content_type, coded.charset) == (PNG, "image/png", "x")
    for url, reason in {
        "data:image/png;base64": "no comma",
        "data:;base64,a*b": "not base64",
        "data:;base64," + "A" * 100: "more than 10 bytes",
        "data:," + "A" * 11: "more than 10 bytes",
    }.items():
        with pytest.raises(BadRequest, match=reason):
            egress.decode_data_url(url, 10)


@pytest.mark.parametrize("shift", range(3))
def test_escapes_of_long_data_urls(shift: int) -> None:
    content = b"x" * shift + b"\xff" * egress.UNQUOTE_CHARS
    url = "data:," + "x" * shift + "%ff" * egress.UNQUOTE_CHARS
    assert egress.decode_data_url(url, len(content)).content == content


async def test_images_of_messages(server: Server) -> None:
    server.replies["/i.png"] = 200, {}, PNG
    sources = [
        ImageSource(data="iVBORw0KGgo="),
        ImageSource(url=URL(uri="data:image/png;base64,iVBORw0KGgo=")),
        ImageSource(url=URL(uri=f"{server.url}/i.png")),
    ]
    assert [await egress.read_image(source, allowed=server.allowed) for source in sources] == [PNG] * 3
    with pytest.raises(BadRequest, match="not a public host"):
        await egress.read_image(sources[2], allowed=())
