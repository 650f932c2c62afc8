"""A real server on a real socket: what httpx's in-process transport cannot show."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import pytest
import uvicorn
from fastapi import FastAPI

from tests.api.fake import FakeInference, complete, progress, start
from tests.api.test_inference import CHAT, chat


@pytest.fixture
async def port(app: FastAPI) -> AsyncIterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, lifespan="off", access_log=False, log_level="warning")
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve([listener]))
        while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        await task


def request(body: bytes, length: int | None = None) -> bytes:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body) if length is None else length}\r\n\r\n".encode() + body


@pytest.mark.parametrize("stream", [False, True])
async def test_closing_the_socket_frees_the_model(port: int, fake: FakeInference, stream: bool) -> None:
    fake.script = [start(), progress("a"), 60.0, complete()]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(json.dumps(chat(stream=stream)).encode()))
    await fake.waiting.wait()
    if stream:
        assert b'data: {"event"' in await reader.readuntil(b"}}\n\n")
    assert fake.closed == 0
    writer.close()
    async with asyncio.timeout(2):
        await fake.freed.wait()


async def test_a_large_body_is_refused_before_it_is_sent(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(b"{", length=10**9))
    async with asyncio.timeout(2):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413")
    writer.close()
