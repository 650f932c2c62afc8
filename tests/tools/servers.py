"""Real servers on loopback: uvicorn in a thread, on a port that is free."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn


class _Server(uvicorn.Server):
    """Ends when it is told to: uvicorn itself looks every 0.1 s, and then gives its clients as long again."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.running = False
        self._stopped = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self.on_tick(0)  # makes the date header
        self.running = True
        await self._stopped.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close what is open, whether it is busy or not; the loop's end cancels what answers."""
        for listener in self.servers:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.transport.close()
        await asyncio.sleep(0.001)  # until that is done

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)


class Served:
    """What came in, and how to stop: `requests` has (method, path, headers, client's port) in order."""

    def __init__(self, app: Any, port: int = 0) -> None:
        self.requests: list[tuple[str, str, dict[str, str], int]] = []
        self._app = app
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("127.0.0.1", port))
        self.port: int = self.socket.getsockname()[1]
        config = uvicorn.Config(
            self._record,
            interface="asgi3",
            log_level="critical",
            lifespan="auto",
            ws="none",
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self.socket],), daemon=True)
        self._thread.start()
        while not self._server.running:
            assert self._thread.is_alive()
            time.sleep(0.001)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ports(self, method: str = "POST") -> set[int]:
        """Of the clients: one for each connection."""
        return {port for verb, _, _, port in self.requests if verb == method}

    async def _record(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = {key.decode(): value.decode("latin-1") for key, value in scope["headers"]}
            self.requests.append((scope["method"], scope["path"], headers, scope["client"][1]))
        await self._app(scope, receive, send)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.stop()
        self._thread.join(10)
        assert not self._thread.is_alive()
        self.socket.close()


@contextmanager
def served(app: Any, port: int = 0) -> Iterator[Served]:
    server = Served(app, port)
    try:
        yield server
    finally:
        server.stop()
