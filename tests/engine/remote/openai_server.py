"""A server that speaks OpenAI's protocol, on loopback, with answers that a test prepares."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


class Endpoint:
    """`events` are streamed, `answer` is given otherwise; `error` goes before both."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.answer: Any = {}
        self.events: list[Any] = []
        self.error: tuple[int, dict[str, str], Any] | None = None
        self.event_delay_s = 0.0
        self.breaks_off = False
        self.events_sent = 0
        self.disconnected = asyncio.Event()
        self.port = 0
        self.app = FastAPI()
        for path in ("completions", "chat/completions", "embeddings"):
            self.app.post(f"/v1/{path}")(self.handle)
        self.app.get("/v1/models")(self.models)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def handle(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization"))
        if self.error is not None:
            status, headers, content = self.error
            return JSONResponse(content, status, headers)
        if request.url.path.endswith("embeddings"):
            vectors = [
                {"index": i, "embedding": [float(len(t)), float(i)]} for i, t in enumerate(body["input"])
            ]
            return JSONResponse({"data": vectors[::-1], "usage": USAGE})
        if body.get("stream"):
            return StreamingResponse(self._stream(), media_type="text/event-stream")
        return Response(json.dumps(self.answer), media_type="application/json")

    async def models(self) -> Any:
        return {"data": [{"id": "gpt", "max_model_len": 4096}]}

    async def _stream(self) -> AsyncIterator[bytes]:
        try:
            yield b": a comment\n\n"
            for event in self.events:
                await asyncio.sleep(self.event_delay_s)
                yield b"event: x\r\ndata: " + json.dumps(event).encode() + b"\r\n\r\n"
                self.events_sent += 1
            if self.breaks_off:
                raise ConnectionError("the server dies")
            yield b"data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.disconnected.set()
            raise

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Endpoint]:
        server = uvicorn.Server(uvicorn.Config(self.app, port=0, log_level="critical", lifespan="off"))
        task = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        self.port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.should_exit = server.force_exit = True
            await task


def delta(index: int = 0, **delta: Any) -> dict[str, Any]:
    """A chunk of a streamed chat answer."""
    extra = {key: delta.pop(key) for key in ("finish_reason", "logprobs") if key in delta}
    return {"id": "c", "choices": [{"index": index, "delta": delta, "finish_reason": None, **extra}]}


def call_delta(
    index: int, id: str | None = None, name: str | None = None, arguments: str = ""
) -> dict[str, Any]:
    """A chunk with a piece of a tool call."""
    function = {"arguments": arguments} | ({"name": name} if name else {})
    call = {"index": index, "function": function} | ({"id": id, "type": "function"} if id else {})
    return delta(tool_calls=[call])


def whole(content: str | None = None, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    """A chat answer that is not streamed."""
    logprobs = message.pop("logprobs", None)
    message = {"role": "assistant", "content": content, **message}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": logprobs}
    return {"id": "c", "choices": [choice], "usage": USAGE}
