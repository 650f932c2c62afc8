"""Whether code can be run on this machine: found out by running some."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from stack.sandbox import runtime, seccomp, users
from stack.sandbox.command import FONT_CACHE, Limits, Place
from stack.sandbox.run import NotStarted, Run

_TRY_S = 60.0
_CACHE_FONTS = """\
import os
os.environ["MPLCONFIGDIR"] = os.getcwd()
try:
    import matplotlib.font_manager
except ImportError:
    pass
"""
_SYSCTLS = (
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("user/max_user_namespaces", "0", "10000"),
)
_CONTAINER = (
    "in a container, start it with --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    "--security-opt systempaths=unconfined, as docs/sandbox.md explains"
)


class Unavailable(Exception):
    """Code cannot be run here: a reason, and what to do about it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason, remedy)
        self.reason, self.remedy = reason, remedy


@dataclass(frozen=True, slots=True)
class Ready:
    """What runs need. `extra`: files for each of them: matplotlib's list of fonts, which takes a second."""

    places: tuple[Place, ...]
    extra: dict[str, bytes]


def check(memory_bytes: int, at_once: int) -> Ready:
    """Look for all that is needed and run something. Takes some seconds. Raises Unavailable."""
    if sys.platform != "linux":
        raise Unavailable(f"there is no sandbox on {sys.platform}", "run the server on Linux")
    if not seccomp.machine_is_known():
        raise Unavailable("there is a sandbox on x86_64 and aarch64 only", "run the server on such a machine")
    if _kernel() < (5, 14):
        raise Unavailable("the kernel does not count processes by namespace", "Linux 5.14 or later is needed")
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise Unavailable(
            "bubblewrap is not installed", "apt-get install bubblewrap (dnf, apk: the same name)"
        )
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        raise Unavailable(
            "the kernel does not tell a process's children", "use one with CONFIG_PROC_CHILDREN"
        )
    try:
        found = runtime.find()
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(
            f"the interpreter's libraries are not found: {error}", "see docs/sandbox.md"
        ) from error
    try:
        spaces = [users.namespace() if os.geteuid() == 0 else None for _ in range(at_once)]
    except OSError as error:
        raise _explained(f"bwrap: as root, {error}") from error
    places = tuple(Place(bwrap, found, space) for space in spaces)
    return Ready(places, _tried(places[0], memory_bytes))


def _tried(place: Place, memory_bytes: int) -> dict[str, bytes]:
    """Run Python in the sandbox; the files that later runs shall find. Raises Unavailable."""
    try:
        result = Run(place, Limits(_TRY_S, _TRY_S, max(memory_bytes, 256 << 20)))(_CACHE_FONTS, {}, {})
    except NotStarted as error:
        raise _explained(str(error)) from error
    except OSError as error:
        raise Unavailable(f"bubblewrap does not run: {error}", "see docs/sandbox.md") from error
    if result.ended != "exited" or result.exit_code != 0:
        reason = (result.stderr.strip().splitlines() or [f"{result.ended}, exit code {result.exit_code}"])[-1]
        raise Unavailable(f"Python does not run in the sandbox: {reason}", "see docs/sandbox.md")
    return {
        f"{FONT_CACHE}/{file.name}": file.content for file in result.files if file.name.startswith("fontlist")
    }


def _explained(said: str) -> Unavailable:
    """bubblewrap's last words, with a remedy where one is known."""
    reason = f"bubblewrap says: {said.splitlines()[-1].removeprefix('bwrap: ')}"
    if "Unknown option" in said:
        return Unavailable(reason, "bubblewrap 0.8 or later is needed")
    if "bwrap:" not in said:
        return Unavailable(
            f"Python does not start in the sandbox: {said.splitlines()[-1]}", "see docs/sandbox.md"
        )
    for name, forbids, allows in _SYSCTLS:
        path = Path("/proc/sys", name)
        if path.exists() and path.read_text().strip() == forbids:
            remedy = f"user namespaces are forbidden: sysctl -w {name.replace('/', '.')}={allows}"
            return Unavailable(reason, remedy)
    return Unavailable(reason, _CONTAINER)


def _kernel() -> tuple[int, int]:
    major, minor = re.findall(r"\d+", platform.release())[:2]
    return int(major), int(minor)
