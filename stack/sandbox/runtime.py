"""What of this machine is seen in the sandbox: an interpreter and its library, packages, shared libraries.

This file is also the program of a child that finds the shared libraries: it loads every extension module and
asks the loader what came with them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("numpy", "pandas", "matplotlib", "tzdata")
PYTHON = "/python/bin/python3"
PACKAGE_FOLDER = "/packages"
LIBRARY_FOLDER = "/lib"
_LOADED_LATE = ("libgcc_s.so.1", "libnss_files.so.2")  # by glibc itself: to end threads, to read /etc/passwd
_NOT_LOADED = (
    "_tkinter",
    "_tkagg",
    "_imagingtk",
    "_curses",
    "readline",
    "nis.",
)  # of no use without a window, terminal, network


@dataclass(frozen=True, slots=True)
class Runtime:
    """`mounts`: (here, there), in order, all read-only. `emptied`: folders there that hold nothing."""

    mounts: tuple[tuple[Path, str], ...]
    emptied: tuple[str, ...]


def find() -> Runtime:
    """Look around. Takes about a second. Raises OSError, CalledProcessError or TimeoutExpired."""
    stdlib = Path(os.path.realpath(os.__file__)).parent
    # The interpreter finds its library as ../lib/python3.x (or lib64), whatever folder both are in.
    library = f"/python/{sys.platlibdir}/{stdlib.name}"
    interpreter = Path(os.path.realpath(sys.executable))
    packages = sorted(package_paths(PACKAGES))
    mounts = [(interpreter, PYTHON), (stdlib, library)]
    mounts += [(path, f"{PACKAGE_FOLDER}/{path.name}") for path in packages]
    mounts += [
        (path, str(path) if _is_loader(path) else f"{LIBRARY_FOLDER}/{path.name}")
        for path in shared_libraries([stdlib, *packages])
    ]
    # What else is installed beside the interpreter is nobody's business.
    emptied = [f"{library}/{name}" for name in ("site-packages", "dist-packages") if (stdlib / name).is_dir()]
    return Runtime(tuple(mounts), tuple(emptied))


def package_paths(names: Iterable[str]) -> set[Path]:
    """Top-level files and folders of those distributions that are installed, and of all that they require."""
    from importlib.metadata import PackageNotFoundError, distribution

    from packaging.requirements import Requirement

    waiting, seen, paths = list(names), set[str](), set[Path]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        requirements = map(Requirement, found.requires or ())
        waiting += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
        tops = {
            line.partition(",")[0].partition("/")[0]
            for line in (found.read_text("RECORD") or "").splitlines()
        }
        tops = {
            top for top in tops if top not in ("", "..", "__pycache__") and not top.endswith(".dist-info")
        }
        paths |= {path for top in tops if (path := Path(str(found.locate_file(top)))).exists()}
    return paths


def shared_libraries(folders: list[Path]) -> list[Path]:
    """The loader, and what the interpreter and the extension modules in `folders` load from elsewhere."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", __file__, *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""), "OPENBLAS_NUM_THREADS": "1"},
    )
    libraries: dict[str, Path] = {}
    for line in done.stdout.splitlines():
        path = Path(os.path.normpath(line))
        if not any(path.is_relative_to(folder) for folder in folders):
            libraries.setdefault(path.name, path)
    return sorted(libraries.values())


def _is_loader(path: Path) -> bool:
    """The kernel looks for it where the interpreter's ELF header says."""
    return re.match(r"ld(-linux|-musl|64)?\b.*\.so", path.name) is not None


def _extensions(folders: Iterable[str]) -> Iterator[str]:
    for folder in folders:
        for parent, _, names in os.walk(folder):
            if "site-packages" not in parent.removeprefix(folder):
                yield from (f"{parent}/{n}" for n in names if ".so" in n and not n.startswith(_NOT_LOADED))


def _loaded() -> Iterator[str]:
    """Paths of all that is loaded, as the loader found them (dl_iterate_phdr(3))."""
    import ctypes

    class Info(ctypes.Structure):
        _fields_ = [("address", ctypes.c_void_p), ("name", ctypes.c_char_p)]

    names: list[str] = []

    def note(info: ctypes._Pointer[Info], _size: int, _data: int) -> int:
        names.append(os.fsdecode(info.contents.name or b""))
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Info), ctypes.c_size_t, ctypes.c_void_p)
    ctypes.CDLL(None).dl_iterate_phdr(callback(note), None)
    yield from (name for name in names if name.startswith("/"))


def _main(folders: list[str]) -> None:
    import contextlib
    import ctypes

    for path in (*_LOADED_LATE, *_extensions(folders)):
        with contextlib.suppress(OSError):  # a module without its library could not be imported here either
            ctypes.CDLL(path, mode=os.RTLD_LAZY)
    sys.stdout.write("".join(f"{name}\n" for name in _loaded()))
    sys.stdout.flush()
    os._exit(0)  # destructors of modules that were never initialised may abort


if __name__ == "__main__":
    _main(sys.argv[1:])
