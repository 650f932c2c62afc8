"""One real stack for the whole run, started as a user starts it: `stack up deployments/stack.yaml`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from llama_stack_client import LlamaStackClient

ROOT = Path(__file__).parents[2]
START_S = 240


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A `stack up` process and where it listens."""

    def __init__(self, home: Path, *, args: tuple[str, ...] = (), ready: str = "curl") -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home / f"up-{self.port}.log"
        environment = os.environ | {"STACK_HOME": str(home), "STACK_EGRESS_ALLOW": "127.0.0.1"}
        environment |= {"STACK_TRAIN_CHECKPOINT_S": "1", "STACK_TELEMETRY_CONTENT": "true"}
        environment |= {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "stack.cli", "up", "--num-cpus", "4", *args]
        command += ["--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        self._wait(ready.encode())

    def _wait(self, ready: bytes) -> None:
        deadline = time.monotonic() + START_S
        while ready not in self.log.read_bytes():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the server did not start:\n{self.log.read_text()}")
            time.sleep(0.2)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    """A STACK_HOME of the run's own; only the weights outlive it."""
    folder = tmp_path_factory.mktemp("home")
    model_cache.mkdir(parents=True, exist_ok=True)
    (folder / "models").symlink_to(model_cache)
    return folder


@pytest.fixture(scope="session")
def server(home: Path, smollm2_dir: Path, minilm_dir: Path) -> Iterator[Server]:
    running = Server(home)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def client(server: Server) -> LlamaStackClient:
    return LlamaStackClient(base_url=server.url, max_retries=0)


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client
