"""The script's process within the sandbox: gives up what it may, then runs the script.

`main.py USER MEMORY_BYTES DISK_BYTES CPU_S PROCESSES`. No limit depends on it: the server watches, too.
"""

from __future__ import annotations

import _thread
import os
import resource
import sys
from types import CodeType, ModuleType

SCRIPT = "/sandbox/script.py"
NAME = "script.py"  # in tracebacks
NICENESS = 10
_TO_EXPLAIN_BYTES = 16 << 20
_ONLY_TREE = 0x400  # ast.PyCF_ONLY_AST, without the time to import `ast`


def main() -> None:
    user, *limits = map(int, sys.argv[1:6])
    if os.getuid() != user:  # the server is root
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)  # and so without any capability
    give_up(*limits)
    sys.exit(run())


def give_up(memory_bytes: int, disk_bytes: int, cpu_s: int, processes: int) -> None:
    """Limits for each process. They cannot be raised again; the server watches the sums."""
    _thread.stack_size(1 << 20)
    limits = {
        resource.RLIMIT_AS: memory_bytes + (4 << 30),
        resource.RLIMIT_FSIZE: disk_bytes,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_NOFILE: 128,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 256,
        resource.RLIMIT_NPROC: processes,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    # What programs get MemoryError from. The rest is to tell of it.
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes + _TO_EXPLAIN_BYTES))
    os.nice(NICENESS)


def run() -> int:
    """Run the script as `__main__`, print the value of a last expression, save figures. The exit code."""
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]  # a text file
    sys.path.insert(0, os.getcwd())
    sys.argv = [NAME]
    with open(SCRIPT, encoding="utf-8") as file:
        source = file.read()
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    try:
        for part in compiled(source):
            exec(part, module.__dict__)
        status = 0
    except SystemExit as error:
        status = exit_code(error)
    except BaseException as error:
        explain(error, source)
        status = 1
    try:
        save_figures()
    except BaseException as error:
        explain(error, source)
    return status


def compiled(source: str) -> list[CodeType]:
    """The script, without a last expression, and that by itself, as at a prompt: its value is printed."""
    import _ast

    tree = compile(source, NAME, "exec", _ONLY_TREE, dont_inherit=True)
    last = []
    if tree.body and isinstance(tree.body[-1], _ast.Expr):
        last = [_ast.Interactive([tree.body.pop()])]
    parts = [compile(tree, NAME, "exec", dont_inherit=True)]
    return parts + [compile(part, NAME, "single", dont_inherit=True) for part in last]


def exit_code(error: SystemExit) -> int:
    """As the interpreter understands sys.exit(x)."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    sys.stderr.write(f"{error.code}\n")
    return 1


def explain(error: BaseException, source: str) -> None:
    """Print the traceback, without this file's frames and with the script's lines."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    import linecache
    import traceback

    linecache.cache[NAME] = len(source), None, source.splitlines(keepends=True), NAME
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    traceback.print_exception(type(error), error, frames)


def save_figures() -> None:
    """Figures that were left open, as a notebook shows them."""
    if "matplotlib.pyplot" in sys.modules:
        import sandbox_plots  # type: ignore[import-not-found]  # beside this file, in the sandbox

        sandbox_plots.save_open()


if __name__ == "__main__":
    main()
