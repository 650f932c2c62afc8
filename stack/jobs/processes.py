"""The process of a job: `python -m jobs.<kind> --job-id …`, supervised by the process that starts it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import stack

RUNNER_VARIABLE = "STACK_JOB_RUNNER"
"""Set in a supervised process: the name under which it takes its job. Its standard input is then a pipe that
ends with its supervisor, and the process ends with it."""

SUPERVISED = "supervised"
GRACE_S = 5.0  # between being asked to end and being killed


def command(kind: str, job_id: str, package: str = "jobs") -> list[str]:
    """-P: a folder `jobs` in the working directory is not ours."""
    return [sys.executable, "-P", "-m", f"{package}.{kind.replace('-', '_')}", "--job-id", job_id]


def environment(extra: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The child's: ours, and a path on which it finds this package and the entry points beside it."""
    root = Path(stack.__file__).resolve().parents[1]
    paths = [path for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    # Installed packages are found anyway; on PYTHONPATH they would go before the standard library.
    if root.name not in ("site-packages", "dist-packages") and str(root) not in paths:
        paths.append(str(root))
    unbuffered = {"PYTHONUNBUFFERED": "1", RUNNER_VARIABLE: SUPERVISED}
    joined = {"PYTHONPATH": os.pathsep.join(paths)} if paths else {}
    return {**environ, **joined, **unbuffered, **extra}


class JobProcess:
    """A running entry point. Its own process group, so that what it starts goes with it."""

    def __init__(self, arguments: list[str], log: Path, environ: Mapping[str, str]) -> None:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                arguments,
                env=dict(environ),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> int:
        """Until it ends by itself; what it started and left behind is killed."""
        code = self._process.wait()
        self._kill()
        return code

    def stop(self, grace_s: float = GRACE_S) -> None:
        """Ask it to end, then kill it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        self._kill()
        self._process.wait()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
