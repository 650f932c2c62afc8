"""User namespaces for a server that runs as root, in which scripts run as a user of their own.

As root itself they could have any number of processes: RLIMIT_NPROC does not bind it. An ordinary user's runs
need nothing of this; bubblewrap makes their namespaces.

This file is also the program of the child that such a namespace begins with.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_NOBODY = 65534
SANDBOX = 1000
"""The script's user and group within the sandbox."""

_CLONE_NEWUSER = 0x10000000


def namespace() -> int:
    """A file descriptor of a namespace with root and one user, who is nobody outside. Raises OSError."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        if child.stdout.readline() != b"made\n":
            raise OSError("user namespaces are forbidden")
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{child.pid}/{kind}").write_text(f"0 0 1\n{SANDBOX} {_NOBODY} 1\n")
        child.stdin.write(b"mapped\n")
        if child.stdout.readline() != b"closed\n":
            raise OSError("user namespaces within user namespaces cannot be forbidden")
        return os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY)


def _main() -> None:
    import ctypes

    if ctypes.CDLL(None).unshare(_CLONE_NEWUSER) != 0:
        sys.exit(1)
    _say("made")
    sys.stdin.readline()
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    _say("closed")
    sys.stdin.read()


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main()
