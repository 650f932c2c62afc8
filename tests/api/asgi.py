"""One ASGI request, driven by hand: its client may go away, which httpx's transport cannot do."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.types import ASGIApp, Message


class Exchange:
    def __init__(
        self, app: ASGIApp, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        if body is not None:
            headers = {
                "content-type": "application/json",
                "content-length": str(len(content)),
                **(headers or {}),
            }
        self.scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
            "method": method, "scheme": "http", "path": path, "raw_path": path.encode(), "root_path": "",
            "query_string": b"", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
            "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
        }  # fmt: skip
        self.sent: list[Message] = []
        self.changed = asyncio.Event()
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.put({"type": "http.request", "body": content, "more_body": False})
        self.task = asyncio.ensure_future(app(self.scope, self._incoming.get, self._send))  # type: ignore[arg-type]

    def put(self, message: Message) -> None:
        self._incoming.put_nowait(message)

    def disconnect(self) -> None:
        self.put({"type": "http.disconnect"})

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        self.changed.set()

    async def wait_for_bodies(self, number: int) -> None:
        """Until that many body messages were sent."""
        async with asyncio.timeout(5):
            while len(self.bodies) < number:
                self.changed.clear()
                await self.changed.wait()

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])
