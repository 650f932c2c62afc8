"""A local Ray cluster that lives as long as this process: starts it, runs a Serve config, ends it all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import io
import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from stack.cli.environment import free_port
from stack.cli.problems import CliError

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_STARTS = 3


@dataclass(slots=True)
class Cluster:
    """Ray as this process started it, or one at `address` that was there before."""

    run_folder: Path
    address: str | None = None
    dashboard: bool = False
    num_cpus: int | None = None
    verbose: bool = False
    keep_logs: bool = True
    metrics_port: int = field(default_factory=free_port)
    _started: bool = False
    _core: list[psutil.Process] = field(default_factory=list)

    @property
    def logs(self) -> Path:
        return self.run_folder / "ray" / "session_latest" / "logs"

    def start(self) -> None:
        """Start Ray or connect to it. Ray's environment must be set, see `stack.cli.environment`."""
        import ray

        self._started = True
        sys.path.insert(0, os.getcwd())  # where `serve run` looks for applications, too
        logging.getLogger("ray.serve").setLevel(logging.INFO if self.verbose else logging.ERROR)
        options: dict[str, Any] = {
            "namespace": "serve",
            "log_to_driver": self.verbose,
            "logging_level": "INFO" if self.verbose else "ERROR",
        }
        if self.address is not None:
            try:
                ray.init(address=self.address, **options)
            except ConnectionError as error:
                raise CliError(f"no Ray cluster answers at {self.address!r}: {error}") from None
            return
        adopt_orphans()
        self._start_ray(options)
        self._core = [p for p in _children() if _living_name(p) in ("raylet", "gcs_server")]

    def _start_ray(self, options: dict[str, Any]) -> None:
        """Ray gives its agent 15 s, too few when a fresh disk and a busy machine meet: then once more."""
        import ray

        for _ in range(_STARTS):
            try:
                ray.init(
                    address="local",
                    include_dashboard=self.dashboard,
                    num_cpus=self.num_cpus,
                    _metrics_export_port=self.metrics_port,
                    _temp_dir=str(self.run_folder / "ray"),
                    **options,
                )
                return
            except Exception as error:  # Ray has no class for this one
                if "timed out during startup" not in str(error):
                    raise
                ray.shutdown()
                kill([process for process in _children() if _mentions(process, f"{self.run_folder}/")])
        raise CliError(f"Ray did not start in time, is the machine overloaded? logs: {self.logs}")

    def wait_until_dead(self, timeout_s: float) -> str | None:
        """Wait, and name the process without which the cluster cannot go on, if one has ended."""
        if not self._core:
            time.sleep(timeout_s)
            return None
        gone, _ = psutil.wait_procs(self._core, timeout=timeout_s)
        return str(gone[0].pid) if gone else None

    def shut_down(self) -> None:
        """End Serve, whose replicas finish the requests that they have, and Ray if it was started here."""
        if not self._started:  # perhaps not even imported in full
            return
        import ray

        with _quiet(self.verbose):
            if ray.is_initialized():
                from stack.serve.run import shutdown

                shutdown()
            ray.shutdown()

    def clean_up(self) -> None:
        """End what still runs of what was started here, and remove its folder unless the logs are wanted."""
        if self.address is None:
            kill(_children())
        if not (self.keep_logs and self.logs.exists()):
            shutil.rmtree(self.run_folder, ignore_errors=True)


@contextlib.contextmanager
def run_folder(port: int) -> Iterator[Path]:
    """The stack's own folder for sockets, Ray's session and logs; short, since a socket's path is limited.

    One stack at a time has it. Leftovers of a killed one go first: its HAProxy may still hold the port.
    """
    parent = Path("/tmp") / f"stack-{os.getuid()}"
    parent.mkdir(mode=0o700, exist_ok=True)
    if parent.is_symlink() or parent.stat().st_uid != os.getuid():
        raise CliError(f"{parent} belongs to someone else; remove it")
    folder = parent / str(port)
    with (parent / f"{port}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system drops it with the process
        except BlockingIOError:
            raise CliError(
                f"another stack runs on port {port}; stop it, or choose another port: --port {port + 1}"
            ) from None
        kill([p for p in psutil.process_iter() if _mentions(p, f"{folder}/")])
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        yield folder


def check_port(host: str, port: int) -> None:
    """Raise CliError that says who holds the port, if someone does."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise CliError(f"port {port} is privileged; choose one above 1023: --port 8321") from None
        except socket.gaierror:
            raise CliError(f"host {host!r} is no address; write e.g. 127.0.0.1 or 0.0.0.0") from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise CliError(f"cannot listen on {host}:{port}: {error.strerror}") from None
            raise CliError(
                f"port {port} is taken{_holder(port)}; stop that, or choose another port: --port {port + 1}"
            ) from None


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent dies, so that none is lost."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill(processes: list[psutil.Process]) -> None:
    """End processes: asked first, then killed."""
    for signal_process in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with contextlib.suppress(psutil.Error):
                signal_process(process)
        _, processes = psutil.wait_procs(processes, timeout=3)


def _children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _living_name(process: psutil.Process) -> str:
    """Of a process that has not ended, if it was not waited for."""
    with contextlib.suppress(psutil.Error):
        return "" if process.status() == psutil.STATUS_ZOMBIE else process.name()
    return ""


def _mentions(process: psutil.Process, text: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.pid != os.getpid() and any(text in part for part in process.cmdline())
    return False


def _holder(port: int) -> str:
    """` by NAME (pid N)` of who listens on a port, as far as this user may see it."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr
            if listens and listens.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


@contextlib.contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Ray tells of the tasks that its own shutdown cuts off; nobody can act on that."""
    if verbose:
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
