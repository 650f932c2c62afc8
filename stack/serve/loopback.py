"""Keeps Serve's gRPC between replicas off the network on a cluster of one machine.

Ray Serve 2.60 binds it to every interface, and it unpickles what it gets: whoever reaches the port runs code.
"""

from __future__ import annotations

from typing import Any

import ray.util
from ray.serve._private import replica


def bind_loopback() -> None:
    """Call where replicas import it, before their servers start. Clusters of many nodes stay as they are."""
    module: Any = replica
    add_port = module.add_port_to_grpc_server
    get_address: Any = ray.util.get_node_ip_address

    def add_loopback_port(server: Any, address: str) -> Any:
        alone = address == "[::]:0" and get_address() == "127.0.0.1"
        return add_port(server, "127.0.0.1:0" if alone else address)

    module.add_port_to_grpc_server = add_loopback_port
