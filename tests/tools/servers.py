"""Real servers on loopback: uvicorn in a thread, on a port that is free."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn


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
            timeout_graceful_shutdown=1,
            ws="none",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self.socket],), daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.005)

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
        self._server.should_exit = True
        self._server.force_exit = True
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
