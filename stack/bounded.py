"""Work on what somebody else wrote, in a child process whose CPU time, memory and stack the kernel bounds.

A document, a grammar or a data file can be made to take minutes, gigabytes or, by a stack overflow, the whole
process that reads it. Here the child is what ends; the next call starts another. This file is also the
child's program, which imports only what it is told to run.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_PASSED_ON = ("PATH", "HOME", "LANG", "LC_", "LD_LIBRARY_PATH", "TMPDIR", "OPENBLAS_", "OMP_", "TZ")
_KILLED: dict[int, str] = {signal.SIGVTALRM: "time", signal.SIGSEGV: "stack", signal.SIGABRT: "memory"}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may take. `wall_s` is for a call that waits, or a machine too busy to run it."""

    cpu_s: float
    wall_s: float
    memory_bytes: int
    stack_bytes: int = 1 << 20  # an eighth of what the threads of a server have


class Exceeded(Exception):
    """The child was ended. `limit`: "time", "memory", "stack", or "other" when nobody knows."""

    def __init__(self, limit: str) -> None:
        super().__init__(limit)
        self.limit = limit


class Refused(Exception):
    """The function raised ValueError; the message is its own."""


class BoundedChild:
    """Calls functions in a child that starts when first needed. Blocking, thread-safe, one at a time."""

    def __init__(self, limits: Limits, modules: Sequence[str]) -> None:
        """`modules` are imported before the first call's clock runs."""
        self._limits, self._modules = limits, list(modules)
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def call(self, function: str, *arguments: Any) -> Any:
        """What `package.module:function` returns; arguments and result are JSON. Raises Exceeded, Refused."""
        request = json.dumps([function, arguments])
        with self._lock:
            child = self._child or self._start()
            assert child.stdin is not None
            assert child.stdout is not None
            overdue = threading.Event()

            def end() -> None:
                overdue.set()
                child.kill()

            killer = threading.Timer(self._limits.wall_s, end)
            killer.start()
            answer = ""
            try:
                with contextlib.suppress(BrokenPipeError):
                    child.stdin.write(request + "\n")
                    child.stdin.flush()
                    answer = child.stdout.readline()
            finally:
                killer.cancel()
                if not answer.endswith("\n"):
                    self._discard(child)
        if not answer.endswith("\n"):
            raise Exceeded("time" if overdue.is_set() else _KILLED.get(-(child.returncode or 0), "other"))
        reply = json.loads(answer)
        if "exceeded" in reply:
            raise Exceeded(reply["exceeded"])
        if "refused" in reply:
            raise Refused(reply["refused"])
        if "failed" in reply:
            raise RuntimeError(reply["failed"])
        return reply["result"]

    def abort(self) -> None:
        """Kill the child, also in the middle of another thread's call, which then raises Exceeded."""
        if (child := self._child) is not None:
            child.kill()

    def close(self) -> None:
        """End the child once nobody calls it any more."""
        with self._lock:
            if self._child is not None:
                self._discard(self._child)

    def _start(self) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, sys.path))
        self._child = subprocess.Popen(
            [sys.executable, "-P", __file__, json.dumps([asdict(self._limits), self._modules])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            # None of the server's keys: what reads hostile input may be taken over by it.
            env={name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
            | {"PYTHONPATH": path, "RAYON_NUM_THREADS": "1"},
        )
        return self._child

    def _discard(self, child: subprocess.Popen[str]) -> None:
        """Wait for a child that ends by itself, so that its reason is kept; then kill it."""
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        try:
            child.wait(1.0)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()
        self._child = None


def _answer(line: str) -> dict[str, Any]:
    name, arguments = json.loads(line)
    module, _, function = name.partition(":")
    try:
        return {"result": getattr(importlib.import_module(module), function)(*arguments)}
    except ValueError as error:
        return {"refused": str(error)}
    except RecursionError:
        return {"exceeded": "stack"}
    except MemoryError:
        return {"exceeded": "memory"}
    except Exception as error:  # the process's edge: the parent raises it
        return {"failed": f"{type(error).__name__}: {error}"}


def _serve(cpu_s: float, replies: int) -> None:
    with open(replies, "w", encoding="utf-8") as stream:
        for line in sys.stdin:
            signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s)  # its default action ends the process
            answer = json.dumps(_answer(line))
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            stream.write(answer + "\n")
            stream.flush()


def main() -> None:
    import resource

    limits, modules = json.loads(sys.argv[1])
    for name in modules:
        importlib.import_module(name)
    memory = limits["memory_bytes"]
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.dup(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # what a library prints is no reply
    os.dup2(silence, 2)  # a Rust panic's text is of no use to anybody
    threading.stack_size(limits["stack_bytes"])
    worker = threading.Thread(target=_serve, args=(limits["cpu_s"], replies))
    worker.start()
    worker.join()


if __name__ == "__main__":
    main()
