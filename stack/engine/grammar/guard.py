"""A subprocess that compiles a grammar before this process does.

Compiling somebody else's grammar can take minutes, gigabytes or, by a stack overflow, the whole process; the
library's own limits don't cover all of it. So a grammar is first compiled in a child whose CPU time, memory
and stack the kernel bounds. This file is also the child's program; there it imports nothing of the package.
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
from dataclasses import dataclass
from typing import Any

CPU_SECONDS = 0.5
WALL_SECONDS = 10.0  # only for a machine so busy that the child gets no CPU
MEMORY_BYTES = 1 << 30
STACK_BYTES = 1 << 20  # an eighth of what the threads of a server have

_KILLED: dict[int, str] = {
    signal.SIGVTALRM: f"it takes more than {CPU_SECONDS} s to compile",
    signal.SIGSEGV: "its rules are nested too deeply",
    signal.SIGABRT: "it takes too much memory to compile",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """`grammar` is what the library takes, empty when there is an `error`."""

    grammar: str
    error: str


class GrammarGuard:
    """Starts the child when it is first needed and again after it was killed. Blocking, thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def check(self, grammars: list[dict[str, Any]]) -> Verdict:
        """Compile llguidance's list of grammars, in which one may also be `{"gbnf": text}`."""
        request = json.dumps(grammars)
        with self._lock:
            child = self._child or self._start()
            killer = threading.Timer(WALL_SECONDS, child.kill)
            killer.start()
            answer = ""
            try:
                assert child.stdin is not None
                assert child.stdout is not None
                with contextlib.suppress(BrokenPipeError):
                    child.stdin.write(request + "\n")
                    child.stdin.flush()
                    answer = child.stdout.readline()
            finally:
                killer.cancel()
                if not answer:
                    self._discard(child)
        if not answer:
            return Verdict("", _KILLED.get(-(child.returncode or 0), "it is too complex to compile"))
        return Verdict(**json.loads(answer))

    def close(self) -> None:
        with self._lock:
            if self._child is not None:
                self._discard(self._child)

    def _start(self) -> subprocess.Popen[str]:
        self._child = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "RAYON_NUM_THREADS": "1"},
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


def _compile(grammars: list[dict[str, Any]]) -> dict[str, str]:
    import llguidance
    import numpy
    from llguidance.gbnf_to_lark import gbnf_to_lark

    tokenizer = llguidance.LLTokenizer("byte")
    try:
        for grammar in grammars:
            if "gbnf" in grammar:
                grammar["lark_grammar"] = gbnf_to_lark(grammar.pop("gbnf"))
    except RecursionError:
        return {"grammar": "", "error": "its groups are nested too deeply"}
    except Exception as error:  # the converter raises plain Exception for what the grammar got wrong
        return {"grammar": "", "error": str(error)}
    text = json.dumps({"grammars": grammars})
    limits = llguidance.LLParserLimits(verbose_errors=False)
    matcher = llguidance.LLMatcher(tokenizer, text, log_level=0, limits=limits)
    if not matcher.is_error():
        mask = numpy.zeros((tokenizer.vocab_size + 31) // 32, dtype=numpy.int32)
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if matcher.is_error() or not mask.any():
            return {"grammar": "", "error": "there is no text that it accepts"}
    return {"grammar": "" if matcher.is_error() else text, "error": matcher.get_error()}


def _serve() -> None:
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)  # its default action ends the process
        answer = json.dumps(_compile(json.loads(line)))
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


def main() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a Rust panic's text is of no use to anybody
    for module in ("llguidance", "llguidance.gbnf_to_lark", "numpy"):
        importlib.import_module(module)  # before the clock of the first request runs
    threading.stack_size(STACK_BYTES)
    worker = threading.Thread(target=_serve)
    worker.start()
    worker.join()


if __name__ == "__main__":
    main()
