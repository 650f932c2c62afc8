"""A stack on one machine is not on the network, HAProxy's statistics aside (see docs/cli.md)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from tests.serve.conftest import Server


def test_nothing_listens_beyond_loopback(server: Server) -> None:
    stack = psutil.Process(server.process.pid)
    processes = [stack, *stack.children(recursive=True)]
    assert {"raylet", "haproxy"} <= {process.name() for process in processes}
    assert any(process.name().startswith("ray::ServeReplica:model-") for process in processes)
    assert exposed(processes) <= {"haproxy"}


def exposed(processes: list[psutil.Process]) -> set[str]:
    """Names of those that listen on other addresses than loopback."""
    loopback = re.compile(r"127\.|::1$|::ffff:127\.")
    return {
        process.name()
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and not loopback.match(connection.laddr.ip)
    }
