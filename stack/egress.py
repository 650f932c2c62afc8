"""The only way to a URL that a caller named.

A caller must not reach through this server what it could not reach by itself: http and https only, no
private, loopback, link-local or otherwise special address unless STACK_EGRESS_ALLOW lists the host.
A name is resolved once, all its addresses are checked, and the connection goes to a checked address while
the Host header and TLS keep the name, so a second, different DNS answer is of no use. Redirects go through
the same checks. Proxies from the environment are not used: they would resolve the name again.

`fetch` and `stream` bound size and time, also of what is compressed. `EgressTransport` is for clients of
their own, e.g. httpx.AsyncClient(transport=EgressTransport(settings.egress_allowed)).
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

import httpcore
import httpx

from stack.errors import BadRequest, Timeout, UpstreamError
from stack.settings import get_settings

if TYPE_CHECKING:
    from stack.schemas.content import ImageSource

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_REDIRECTS = 5
MAX_IMAGE_BYTES = 20 << 20
UNQUOTE_CHARS = 1 << 18

# Beyond what `ipaddress` calls not global: see the IANA special-purpose registries. The single address is the
# metadata server of one large cloud, inside public space.
_SPECIAL_V4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16",
        "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
        "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
    )
]  # fmt: skip
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
# Protocol assignments and Teredo, documentation, 6to4 (which carries any IPv4 address), documentation.
_SPECIAL_V6 = [ipaddress.IPv6Network(n) for n in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: Address) -> bool:
    """Whether an address is of the public Internet, and not one in which a private IPv4 address hides."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:  # what a resolver answers on a network that has IPv6 only
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        return address in _GLOBAL_V6 and not any(address in network for network in _SPECIAL_V6)
    return not any(address in network for network in _SPECIAL_V4)


class _Backend(httpcore.AsyncNetworkBackend):
    """Opens connections to checked addresses only."""

    def __init__(self, allowed: Collection[str]) -> None:
        self._allowed = allowed
        self._sockets = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await _resolve(host, port, timeout)
        if not _is_allowed(host, port, self._allowed) and not all(map(is_public, addresses)):
            raise BadRequest(
                f"{host} is not a public host; the operator can allow it: STACK_EGRESS_ALLOW={host}:{port}"
            )
        error: Exception | None = None
        for address in addresses:
            try:
                return await self._sockets.connect_tcp(
                    str(address), port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failure:
                error = failure
        raise error or httpcore.ConnectError(f"{host} has no address")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise BadRequest("URLs cannot name sockets of this machine")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def _resolve(host: str, port: int, timeout_s: float | None) -> list[Address]:
    """The addresses of a host, each once, in the resolver's order."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError as error:
        raise httpcore.ConnectTimeout(f"{host} was not resolved in time") from error
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(f"{host} cannot be resolved") from error
    # A zone ("fe80::1%eth0") is of link-local addresses only; they stay so without it.
    return list(dict.fromkeys(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))


def _is_allowed(host: str, port: int, allowed: Collection[str]) -> bool:
    host = host.lower().rstrip(".").strip("[]")
    names = (host, f"[{host}]") if ":" in host else (host,)
    return any(name in allowed or f"{name}:{port}" in allowed for name in names)


def check_url(url: httpx.URL) -> None:
    """BadRequest when a URL is of no kind that is fetched. Says nothing of where its host is."""
    if url.scheme not in ("http", "https"):
        raise BadRequest(f"URLs are http or https here, not {url.scheme or 'without a scheme'}")
    if url.userinfo:
        raise BadRequest("a URL must not carry a user name or password; use a header")
    host = url.host.rstrip(".")
    if not host:
        raise BadRequest(f"the URL {str(url)[:200]!r} names no host")
    if url.port is not None and not 0 < url.port < 65536:
        raise BadRequest(f"a URL's port is 1 to 65535, not {url.port}")
    # 2130706433, 0x7f.1 and 0177.0.0.1 are 127.0.0.1 to the system's resolver and names to a reader
    # (https://url.spec.whatwg.org/#ends-in-a-number-checker).
    if re.fullmatch(r"(\d+|0[xX][0-9a-fA-F]*)", host.rsplit(".", 1)[-1]):
        try:
            ipaddress.IPv4Address(host)
        except ValueError as error:
            raise BadRequest(f"{host!r} is an unusual spelling of an IP address; write a.b.c.d") from error


class EgressTransport(httpx.AsyncBaseTransport):
    """An httpx transport, with connection pool, to public hosts and to those in `allowed` (host[:port])."""

    def __init__(self, allowed: Collection[str] = (), max_connections: int = 100) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_ssl_context(),
            max_connections=max_connections,
            max_keepalive_connections=20,
            keepalive_expiry=15,
            network_backend=_Backend(allowed),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        check_url(request.url)
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        with _httpx_errors():
            response = await self._pool.handle_async_request(
                httpcore.Request(
                    request.method,
                    url,
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Stream(response),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Stream(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _httpx_errors():
            async for chunk in self._response.aiter_stream():
                yield chunk

    async def aclose(self) -> None:
        await self._response.aclose()


@contextmanager
def _httpx_errors() -> Iterator[None]:
    """Turn httpcore's errors into httpx's, which have the same names."""
    try:
        yield
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise getattr(httpx, type(error).__name__, httpx.TransportError)(str(error)) from error


@lru_cache(maxsize=1)
def _ssl_context() -> ssl.SSLContext:
    """Reading the certificates takes tens of milliseconds: once."""
    return httpx.create_ssl_context()


@dataclass(frozen=True, slots=True)
class Download:
    """An answer whose body is still coming. `chunks` is read once and raises BadRequest past the limit."""

    url: str  # after redirects
    content_type: str  # media type in lower case, without parameters; "" when not told
    charset: str | None
    chunks: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class Fetched:
    url: str
    content_type: str
    charset: str | None
    content: bytes


@asynccontextmanager
async def stream(
    url: str,
    *,
    max_bytes: int,
    timeout_s: float = 30.0,
    headers: Mapping[str, str] | None = None,
    allowed: Collection[str] | None = None,
) -> AsyncIterator[Download]:
    """GET a caller's http(s) URL. Time is bounded for everything within the `async with`.

    `allowed` (host[:port]) defaults to STACK_EGRESS_ALLOW. BadRequest: a URL that must be changed (also 4xx
    answers and a body over `max_bytes`). UpstreamError, Timeout: its server failed.
    """
    transport = EgressTransport(get_settings().egress_allowed if allowed is None else allowed)
    name = _without_query(url)
    request_headers = {"Accept-Encoding": "gzip", "User-Agent": "stack", **(headers or {})}
    try:
        async with (
            asyncio.timeout(timeout_s),
            httpx.AsyncClient(
                transport=transport, follow_redirects=True, max_redirects=MAX_REDIRECTS, timeout=timeout_s
            ) as client,
            client.stream("GET", _parsed(url), headers=request_headers) as response,
        ):
            _check_status(response, name)
            content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            chunks = bounded_body(response, max_bytes, name)
            yield Download(str(response.url), content_type, response.charset_encoding, chunks)
    except (TimeoutError, httpx.TimeoutException) as error:
        raise Timeout(f"{name} took longer than {timeout_s:g} s") from error
    except httpx.TooManyRedirects as error:
        raise BadRequest(f"{name} redirects more than {MAX_REDIRECTS} times") from error
    except httpx.ConnectError as error:
        raise UpstreamError(f"no connection to {name}: the host is unknown, or does not answer") from error
    except httpx.HTTPError as error:
        raise UpstreamError(f"{name} broke off its answer") from error


async def fetch(
    url: str,
    *,
    max_bytes: int,
    timeout_s: float = 30.0,
    headers: Mapping[str, str] | None = None,
    allowed: Collection[str] | None = None,
) -> Fetched:
    """What is at a caller's http(s) or data URL, whole; see `stream`."""
    if url[:5].lower() == "data:":
        return await asyncio.to_thread(decode_data_url, url, max_bytes)
    async with stream(
        url, max_bytes=max_bytes, timeout_s=timeout_s, headers=headers, allowed=allowed
    ) as download:
        content = b"".join([chunk async for chunk in download.chunks])
        return Fetched(download.url, download.content_type, download.charset, content)


async def read_image(image: ImageSource, *, allowed: Collection[str] | None = None) -> bytes:
    """The file of an image in a message: inline base64, a data URL or an http(s) URL."""
    if image.data is not None:
        return _decode_base64(image.data, MAX_IMAGE_BYTES, "image.data")
    assert image.url is not None  # an ImageSource has one or the other
    fetched = await fetch(image.url.uri, max_bytes=MAX_IMAGE_BYTES, timeout_s=15, allowed=allowed)
    return fetched.content


def decode_data_url(url: str, max_bytes: int) -> Fetched:
    """The content of data:[type][;base64],… (RFC 2397). Computes, for a long one in a thread."""
    head, comma, data = url[5:].partition(",")
    if not comma:
        raise BadRequest("a data URL is data:type;base64,…; this one has no comma")
    content_type, *parameters = [part.strip() for part in head.split(";")]
    if "base64" in (parameter.lower() for parameter in parameters):
        content = _decode_base64(_unquoted(data) if "%" in data else data, max_bytes, "a data URL")
    else:
        content = _unquoted(data)
    if len(content) > max_bytes:
        raise BadRequest(f"a data URL has more than {max_bytes} bytes")
    charset = next((p.partition("=")[2] for p in parameters if p.lower().startswith("charset=")), None)
    return Fetched(url[:64], content_type.lower() or "text/plain", charset, content)


def _unquoted(data: str) -> bytes:
    """With what its %XX stand for. In pieces, since `unquote_to_bytes` takes 50 bytes for each of them."""
    pieces, start = [], 0
    while start < len(data):
        end = start + UNQUOTE_CHARS
        if end < len(data) and (escape := data.rfind("%", end - 2, end)) > start:
            end = escape  # none is cut in two
        pieces.append(unquote_to_bytes(data[start:end]))
        start = end
    return b"".join(pieces)


def _decode_base64(data: str | bytes, max_bytes: int, what: str) -> bytes:
    if len(data) * 3 // 4 > max_bytes + 2:
        raise BadRequest(f"{what} has more than {max_bytes} bytes")
    try:
        return base64.b64decode(data, validate=True)
    except ValueError as error:
        raise BadRequest(f"{what} is not base64: {error}") from error


def _parsed(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise BadRequest(f"{url[:200]!r} is not a URL: {error}") from error
    check_url(parsed)
    return parsed


def _without_query(url: str) -> str:
    """A URL for messages: queries often carry keys."""
    return repr(url.partition("?")[0].partition("#")[0][:200])


def _check_status(response: httpx.Response, name: str) -> None:
    if response.is_success:
        return
    if 400 <= response.status_code < 500 and response.status_code not in (408, 429):
        raise BadRequest(f"{name} answers {response.status_code} {response.reason_phrase}".rstrip())
    raise UpstreamError(f"{name} answers {response.status_code} {response.reason_phrase}".rstrip())


async def _decoded(response: httpx.Response, name: str) -> AsyncIterator[bytes]:
    """The body without its Content-Encoding, in pieces small enough that a bomb is seen before it bursts."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        raise UpstreamError(f"{name} answers in the encoding {encoding!r}, which was not asked for")
    decoder = zlib.decompressobj(47)  # 47: gzip or zlib, whichever it is
    async for data in response.aiter_raw():
        if encoding == "identity":
            yield data
            continue
        while data:
            try:
                yield decoder.decompress(data, 1 << 16)
            except zlib.error as error:
                raise UpstreamError(f"{name} answers with damaged {encoding} data") from error
            data = decoder.unconsumed_tail
            if decoder.eof and (data := decoder.unused_data):  # gzip files may be joined
                decoder = zlib.decompressobj(47)


async def bounded_body(response: httpx.Response, max_bytes: int, name: str) -> AsyncIterator[bytes]:
    """A streamed response's body, decoded; BadRequest as soon as it is larger than `max_bytes`."""
    total = 0
    async for chunk in _decoded(response, name):
        total += len(chunk)
        if total > max_bytes:
            raise BadRequest(f"{name} is larger than {max_bytes} bytes")
        yield chunk
