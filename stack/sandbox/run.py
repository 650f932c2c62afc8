"""One run of code: start it, watch it, end it, take what it left. Blocking: every run has a thread."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from stack.sandbox import outputs
from stack.sandbox.command import MAX_PROCESSES, WORK, Limits, Place, command, script
from stack.sandbox.execution import Ended, Execution
from stack.sandbox.output import MAX_BYTES, Output
from stack.sandbox.processes import children, pss_bytes, usage

MAX_INODES = 5000
_LOOK_EVERY_S = 0.025
_START_S = 30.0
_ENDED_BY_KILL = 128 + signal.SIGKILL
_ENDED_BY_CPU = 128 + signal.SIGXCPU
_WHY: dict[Ended, str] = {
    "processes": f"ended: it had {MAX_PROCESSES} processes and threads",
    "disk": f"ended: it made more than {MAX_INODES} files",
    "output": f"ended: it printed more than {MAX_BYTES >> 20} MiB",
}


class NotStarted(Exception):
    """bubblewrap, or the interpreter within, did not come up; with what was said about it."""


class Run:
    """To be called once, in a thread that lives longer; `stop` from any."""

    def __init__(self, place: Place, limits: Limits) -> None:
        self._place, self._limits = place, limits
        self._stop_read, self._stop_write = os.pipe()
        self._stdout, self._stderr = Output("stdout"), Output("stderr")

    def stop(self) -> None:
        """End the run soon; it then counts as one that ran out of time."""
        with contextlib.suppress(OSError):  # it has just ended
            os.write(self._stop_write, b"s")

    def __call__(self, code: str, files: Mapping[str, bytes], extra: Mapping[str, bytes]) -> Execution:
        """Run `code` with `files` in its folder, and `extra` files anywhere. Raises NotStarted."""
        contents = {f"{WORK}/{name}": content for name, content in files.items()}
        with ExitStack() as fds:
            fds.callback(os.close, self._stop_read)
            fds.callback(os.close, self._stop_write)
            process, channel = self._start(script(code) | dict(extra) | contents, fds)
            try:
                folder = self._folder(process, channel)
                fds.callback(os.close, folder)
                ended = self._watch(process, folder)
            finally:
                end(process)
            return self._execution(ended, process.returncode, folder, files)

    def _start(
        self, contents: Mapping[str, bytes], fds: ExitStack
    ) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        fds.enter_context(ours)
        with ExitStack() as passed:
            passed.enter_context(theirs)
            number = theirs.fileno()
            words, more = command(self._place, contents, number, self._limits, passed)
            process = subprocess.Popen(
                words,
                # An end of a pipe, not /dev/null: what is open here leads to a mount outside.
                stdin=_empty(passed),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[number, *more],
                env={},
                cwd="/",
            )
        assert process.stdout is not None
        assert process.stderr is not None
        fds.enter_context(process.stdout)
        fds.enter_context(process.stderr)
        return process, ours

    def _folder(self, process: subprocess.Popen[bytes], channel: socket.socket) -> int:
        """The working folder: its files can be read even when the sandbox is gone. Raises NotStarted."""
        channel.settimeout(_START_S)
        try:
            _, fds, _, _ = socket.recv_fds(channel, 1, 1, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            raise NotStarted(f"no answer in {_START_S:.0f} s") from None
        if not fds:
            assert process.stderr is not None
            raise NotStarted(process.stderr.read(4096).decode(errors="replace").strip() or "no answer")
        for pid in children(process.pid):
            with contextlib.suppress(OSError):  # for when the machine runs out of memory: this first
                Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
        channel.send(b"g")
        return fds[0]

    def _watch(self, process: subprocess.Popen[bytes], folder: int) -> Ended:
        """Read what it prints until it ends, and say why it must end."""
        assert process.stdout is not None
        assert process.stderr is not None
        deadline = time.monotonic() + self._limits.timeout_s
        next_look = time.monotonic()
        with selectors.DefaultSelector() as selector, _exit_of(process) as exit_fd:
            selector.register(process.stdout, selectors.EVENT_READ, self._stdout)
            selector.register(process.stderr, selectors.EVENT_READ, self._stderr)
            selector.register(self._stop_read, selectors.EVENT_READ)
            selector.register(exit_fd, selectors.EVENT_READ)
            while True:
                ready = selector.select(max(0.0, next_look - time.monotonic()))
                for key, _ in ready:
                    if key.data is not None and not key.data.read_from(key.fd):
                        selector.unregister(key.fileobj)
                numbers = {key.fd for key, _ in ready if key.data is None}
                if exit_fd in numbers and not any(key.data for key, _ in ready):
                    return "exited"
                if self._stop_read in numbers or time.monotonic() > deadline:
                    return "time"
                if self._stdout.is_endless or self._stderr.is_endless:
                    return "output"
                if time.monotonic() >= next_look:
                    if (excess := self._excess(process.pid, folder)) is not None:
                        return excess
                    next_look = time.monotonic() + _LOOK_EVERY_S

    def _excess(self, pid: int, folder: int) -> Ended | None:
        """The limit that the run as a whole is beyond."""
        used = usage(pid, MAX_PROCESSES)
        disk = os.statvfs(folder)
        disk_bytes = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
        if used.tasks >= MAX_PROCESSES:
            return "processes"
        if used.cpu_s > self._limits.cpu_s:
            return "time"
        if disk.f_files - disk.f_ffree > MAX_INODES:
            return "disk"
        if used.rss_bytes + disk_bytes <= self._limits.memory_bytes:
            return None
        return "memory" if pss_bytes(used.pids) + disk_bytes > self._limits.memory_bytes else None

    def _execution(self, ended: Ended, code: int, folder: int, given: Mapping[str, bytes]) -> Execution:
        if ended == "exited" and code == _ENDED_BY_CPU:
            ended = "time"
        files, notes = outputs.collect(folder, given)
        if ended != "exited":
            notes.insert(0, self._why(ended))
        notes += [
            f"{stream.name}: {stream.left_out_bytes} bytes in its middle are left out"
            for stream in (self._stdout, self._stderr)
            if stream.left_out_bytes
        ]
        shown = code if ended == "exited" else _ENDED_BY_KILL
        texts = self._stdout.text(), self._stderr.text()
        return Execution(ended, shown, *texts, tuple(files), tuple(notes))

    def _why(self, ended: Ended) -> str:
        if ended == "time":
            limits = self._limits
            return f"ended: it ran longer than {limits.timeout_s:g} s or took {limits.cpu_s:g} s of CPU time"
        if ended == "memory":
            return f"ended: it needed more than {self._limits.memory_bytes >> 20} MiB of memory and disk"
        return _WHY[ended]


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill the first process within, and so all; then bubblewrap, which waits for it, ends by itself."""
    for pid in children(process.pid):
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            try:
                if pid in children(process.pid):  # not the number's next owner
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            finally:
                os.close(fd)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()  # by --die-with-parent the rest goes with it
        process.wait()


def _empty(fds: ExitStack) -> int:
    """An input without anything in it."""
    read, write = os.pipe()
    os.close(write)
    fds.callback(os.close, read)
    return read


@contextlib.contextmanager
def _exit_of(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """A file descriptor that is readable once the process has ended."""
    fd = os.pidfd_open(process.pid)
    try:
        yield fd
    finally:
        os.close(fd)
