"""A process of the stack with the instant model: `python -m tests.agents.server`.

Several of them share a database, as replicas do. It prints its port once it answers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn

from stack.app import create_app
from stack.context import Stack, open_stack
from stack.settings import Settings
from tests.agents.instant import InstantModel, add_local_tools
from tests.store.examples import model

ROOT = Path(__file__).parents[2]


async def serve() -> None:
    instant = InstantModel()

    @asynccontextmanager
    async def opened() -> AsyncIterator[Stack]:
        async with open_stack(Settings(), lambda model_id: instant, "s") as stack:
            await stack.models.declare(model("tiny"))
            await stack.model_status.set("tiny", "ready", None, {"context_length": 8192, "session": "s"})
            await add_local_tools(stack)
            yield stack

    # With the protocol named, asyncio switches Nagle's algorithm off, which would cost 40 ms a response.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(create_app(opened), log_level="warning", access_log=False)
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
            if running.done():
                running.result()
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        await running


class Replica:
    """Such a process, from the outside."""

    def __init__(self, home: Path, database_url: str | None = None) -> None:
        environment = os.environ | {"STACK_HOME": str(home), "STACK_LOG_LEVEL": "ERROR"}
        if database_url is not None:
            environment["STACK_DATABASE_URL"] = database_url
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.agents.server"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait(self) -> str:
        """Its URL, once it answers."""
        assert self.process.stdout is not None
        port = self.process.stdout.readline().strip()
        if not port:
            raise RuntimeError("the server did not start")
        return f"http://127.0.0.1:{port}"

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


if __name__ == "__main__":
    asyncio.run(serve())
