"""A program in a pseudo-terminal, for tests of what a person sees."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, command: list[str], cwd: Path | None = None) -> None:
        self._screen = ""
        self._mine, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=_take_interrupts,
        )
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._mine)

    def send(self, text: str) -> None:
        os.write(self._mine, text.encode())

    def interrupt(self) -> None:
        """What Ctrl-C does: SIGINT to the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def expect(self, text: str, timeout_s: float = 20.0) -> None:
        """Read on until `text` stands there, colors aside, and forget what came before."""
        deadline = time.monotonic() + timeout_s
        while text not in self._screen:
            ready, _, _ = select.select([self._mine], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {text!r} in {self._screen!r}"
            self._screen = _ESCAPES.sub(
                "", self._screen + os.read(self._mine, 65536).decode(errors="replace")
            )
        self._screen = self._screen.partition(text)[2]


def _take_interrupts() -> None:
    """As a login shell lets programs; what runs in the background ignores them, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
