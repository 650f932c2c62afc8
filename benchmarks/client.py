"""A small HTTP/1.1 client for load generators: raw asyncio streams, keep-alive, one request at a time.

It shares the machine's cores with the server, so it does as little as possible: httpx needs about a
millisecond of CPU for a request, this 50 microseconds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Self
from urllib.parse import urlsplit


class BadAnswer(Exception):
    """The server answered with another status than 200."""


class Connection:
    """One connection, opened at the first request and again after the server closed it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def request(self, path: str, body: Any = None) -> bytes:
        """GET, or POST of a JSON body; the whole answer."""
        return b"".join([chunk async for chunk in self.stream(path, body)])

    async def stream(self, path: str, body: Any = None) -> AsyncIterator[bytes]:
        """Pieces of the answer as they arrive. BadAnswer carries status and body of an error."""
        content = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        if self._reader is None or self._writer is None or self._reader.at_eof():
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
        self._writer.write(head.encode() + content)
        status, headers = await self._head(self._reader)
        pieces = _pieces(self._reader, headers)
        if status != 200:
            answer = b"".join([piece async for piece in pieces])
            raise BadAnswer(f"{path}: {status} {answer[:500].decode(errors='replace')}")
        async for piece in pieces:
            yield piece
        if headers.get("connection", "").lower() == "close":
            self.close()

    async def _head(self, reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:])
        }
        return int(lines[0].split(" ", 2)[1]), headers


async def _pieces(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        length = int(headers.get("content-length", "0"))
        if length:
            yield await reader.readexactly(length)
        return
    while size := int(await reader.readline(), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
