"""Compiles the C sources of this folder once per machine and loads them."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from stack.settings import get_settings

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-std=gnu11", "-O3", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wno-psabi", "-pthread")
COMPILE_TIMEOUT_S = 60


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they are switched off or cannot be had, which is logged."""
    if not get_settings().kernels:
        return None
    try:
        return ctypes.CDLL(str(compiled(get_settings().home / "kernels")))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        log.warning("CPU kernels are not available, models run slower: %s", str(reason).strip()[:500])
        return None


def compiled(folder: Path, machine: str | None = None) -> Path:
    """The shared library in `folder`, compiled first if need be (about two seconds).

    `machine` is the compiler's flag for another CPU than this one. Raises OSError (no compiler, folder not
    writable) and SubprocessError.
    """
    machine = machine or _native()
    target = folder / f"llama-{_key(machine)}.so"
    if target.exists():
        return target
    compiler = _compiler()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        output = Path(scratch) / target.name
        command = [compiler, *FLAGS, machine, "-o", str(output), str(SOURCES / "llama.c"), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S)
        os.replace(output, target)  # two replicas may compile at once: the last wins, both are whole
    return target


def _compiler() -> str:
    for name in (os.environ.get("CC", ""), *COMPILERS):
        if name and (path := shutil.which(name)):
            return path
    raise FileNotFoundError(
        f"no C compiler on PATH (looked for {', '.join(COMPILERS)}); install gcc or clang"
    )


def _native() -> str:
    return "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"


def _key(machine: str) -> str:
    """Changes with the sources and with what `native` means."""
    digest = hashlib.sha256(" ".join((*FLAGS, machine, platform.machine(), platform.system())).encode())
    for source in sorted(SOURCES.glob("*.[ch]")):
        digest.update(source.read_bytes())
    digest.update(cpu_flags().encode())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def cpu_flags() -> str:
    """The first CPU's feature names as Linux lists them, separated by spaces; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
