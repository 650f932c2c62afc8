"""How bubblewrap is called: the namespaces, the folders, and the first process of a run."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from stack.sandbox import seccomp
from stack.sandbox.runtime import LIBRARY_FOLDER, PACKAGE_FOLDER, PYTHON, Runtime
from stack.sandbox.users import SANDBOX

DISK_BYTES = 64 << 20
MAX_PROCESSES = 64
"""Processes and threads of one run together."""

WORK = "/box/work"
FONT_CACHE = "/box/home/matplotlib"
_SCRIPT = "/sandbox/script.py"
_INSIDE = Path(__file__).parent / "inside"
_FOLDERS = (WORK, "/box/tmp", "/box/shm", "/box/home", FONT_CACHE)
_OPEN_FOLDERS = {Path("/dev"), Path("/etc"), Path("/sandbox")}
_ENVIRONMENT = {
    "PATH": "/python/bin",
    "LD_LIBRARY_PATH": LIBRARY_FOLDER,
    "PYTHONPATH": f"{PACKAGE_FOLDER}:/sandbox",
    "PYTHONSAFEPATH": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUTF8": "1",
    "LANG": "C.UTF-8",
    "HOME": "/box/home",
    "USER": "sandbox",
    "TMPDIR": "/box/tmp",
    "MPLCONFIGDIR": FONT_CACHE,
    "MPLBACKEND": "module://sandbox_plots",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}
_OWN_USERS = ("--unshare-user", "--disable-userns", "--uid", str(SANDBOX), "--gid", str(SANDBOX))
_TO_CHANGE_USER = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
_APART = (
    *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-cgroup"),
    *("--unshare-uts", "--hostname", "sandbox"),
    *("--cap-drop", "ALL", "--new-session", "--die-with-parent", "--as-pid-1", "--clearenv"),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may take, all its processes together. Its disk counts as memory."""

    timeout_s: float
    cpu_s: float
    memory_bytes: int

    @property
    def data_bytes(self) -> int:
        """Of one process. A little less than the run's, so that most programs get a MemoryError first."""
        return self.memory_bytes * 7 // 8


@dataclass(frozen=True, slots=True)
class Place:
    """Where runs happen, one after the other. `users`: a user namespace to join; None: each has its own."""

    bwrap: str
    runtime: Runtime
    users: int | None


def command(
    place: Place, contents: Mapping[str, bytes], channel: int, limits: Limits, fds: ExitStack
) -> tuple[list[str], list[int]]:
    """The command, and what it reads besides `channel`. `contents`: a file there -> its bytes."""
    filter_fd = _readable(seccomp.program(), fds)
    passed = {path: _readable(content, fds) for path, content in (_programs() | dict(contents)).items()}
    read = [filter_fd, *passed.values()]
    first = [PYTHON, "-I", "-S", "/sandbox/first.py", channel]
    first += [PYTHON, "-s", "/sandbox/main.py", SANDBOX, limits.data_bytes, DISK_BYTES]
    first += [math.ceil(limits.cpu_s), MAX_PROCESSES]
    words = [place.bwrap, *_APART]
    if place.users is None:
        words += _OWN_USERS
    else:
        words += ["--userns", str(place.users), *_TO_CHANGE_USER]
        read.append(place.users)
    words += [
        *_mounts(place.runtime),
        *_own_files(passed),
        "--seccomp",
        str(filter_fd),
        "--",
        *map(str, first),
    ]
    return words, read


def script(code: str) -> dict[str, bytes]:
    """The contents that make a run execute `code`."""
    return {_SCRIPT: code.encode("utf-8", "replace")}


def _programs() -> dict[str, bytes]:
    return {
        "/sandbox/first.py": (_INSIDE / "first.py").read_bytes(),
        "/sandbox/main.py": (_INSIDE / "main.py").read_bytes(),
        "/sandbox/sandbox_plots.py": (_INSIDE / "sandbox_plots.py").read_bytes(),
        "/etc/passwd": b"sandbox:x:1000:1000::/box/home:/nologin\n",
        "/etc/group": b"sandbox:x:1000:\n",
    }


def _mounts(runtime: Runtime) -> Iterator[str]:
    parents = {parent for _, there in runtime.mounts for parent in Path(there).parents} | _OPEN_FOLDERS
    for folder in sorted(parents - {Path("/")}):  # as long as nothing is mounted there
        if not any(folder.is_relative_to(there) for _, there in runtime.mounts):
            yield from ("--perms", "0755", "--dir", str(folder))
    for here, there in runtime.mounts:
        yield from ("--ro-bind", str(here), there)
    for there in runtime.emptied:
        yield from ("--size", "4096", "--tmpfs", there, "--remount-ro", there)
    # /dev/zero would hold memory that nobody counts. There is neither /proc nor /sys.
    for device in ("/dev/null", "/dev/urandom"):
        yield from ("--dev-bind", device, device)


def _own_files(passed: Mapping[str, int]) -> Iterator[str]:
    """All that can be written is below /box, which has a size; the root is read-only in the end."""
    yield from ("--perms", "0755", "--size", str(DISK_BYTES), "--tmpfs", "/box")
    parents = {os.path.dirname(path) for path in passed if path.startswith(f"{WORK}/")}
    for folder in (*_FOLDERS, *sorted(_with_parents(parents - {WORK}))):
        yield from ("--perms", "0777", "--dir", folder)
    yield from ("--symlink", "/box/tmp", "/tmp", "--symlink", "/box/shm", "/dev/shm")
    for path, fd in passed.items():
        yield from ("--perms", "0666", "--file", str(fd), path)
    yield from ("--remount-ro", "/", "--chdir", WORK)
    for name, value in _ENVIRONMENT.items():
        yield from ("--setenv", name, value)


def _with_parents(folders: set[str]) -> set[str]:
    """Below the working folder, a parent sorts before what is in it."""
    return {
        str(folder)
        for name in folders
        for folder in (Path(name), *Path(name).parents)
        if folder.is_relative_to(WORK) and str(folder) != WORK
    }


def _readable(content: bytes, fds: ExitStack) -> int:
    """A file descriptor from which `content` is read once."""
    fd = os.memfd_create("sandbox")
    fds.callback(os.close, fd)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
