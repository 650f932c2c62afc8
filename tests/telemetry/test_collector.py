"""Spans go to a collector, too. In a process of its own: its provider of spans is there for life."""

from __future__ import annotations

import asyncio
import gzip
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from stack.settings import Settings
from stack.telemetry.store import open_spans

PROGRAM = """
import asyncio, sys
from pathlib import Path
from stack.engine.base import NoMeter
from stack.settings import Settings
from stack.telemetry.recording import open_recording
from stack.tracing import common, span

async def main():
    settings = Settings(home=Path(sys.argv[1]), telemetry_otlp_url=sys.argv[2])
    async with open_recording(settings, NoMeter()):
        with common({"turn_id": "t"}), span("outer", {"n": 1}):
            with span("inner", {}):
                pass

asyncio.run(main())
"""


class Collector(HTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.names: list[str] = []
        self.status = 200


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.server.names += [span.name for span in scope.spans]
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("status", [200, 400])
def test_spans_reach_the_store_and_the_collector(tmp_path: Path, collector: Collector, status: int) -> None:
    """Which may refuse them: the store has them all the same."""
    collector.status = status
    url = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), url]
    done = subprocess.run(command, env=environment, timeout=120, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(collector.names) == ["inner", "outer"]

    async def stored() -> list[str]:
        async with open_spans(Settings(home=tmp_path)) as spans:
            found = await spans.find([], 10)
            assert {each.attributes["turn_id"] for each in found} == {"t"}
            return sorted(each.name for each in found)

    assert asyncio.run(stored()) == ["inner", "outer"]
