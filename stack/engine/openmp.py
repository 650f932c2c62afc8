"""PyTorch's threads on CPUs: OpenMP keeps a pool for every thread that computes, until that thread ends.

When a process has more of them than CPUs, GNU's OpenMP lets them sleep after each operation instead of
waiting awake for the next: the steps of a small model then take 1.4 times as long. So a process computes in
one thread that stays, and whatever else needs PyTorch does it in a thread that ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_ending_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What it gives or raises; the thread's pool has gone with it."""
    with ThreadPoolExecutor(1, "ending") as thread:
        return thread.submit(function, *args, **kwargs).result()


def let_kernels_have_cpus() -> None:
    """To be called before PyTorch is loaded, which reads this then.

    Where CPUs compute bfloat16, the kernels of `runners.kernels` have threads of their own, which need the
    CPUs that waiting threads of PyTorch would hold.
    """
    if computes_bfloat16():
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def computes_bfloat16() -> bool:
    """Whether this machine's first CPU does."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & _cpu_flags())


def _cpu_flags() -> frozenset[str]:
    """Empty where there is no /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = (line.split(":", 1)[1] for line in lines if line.lower().startswith(("flags", "features")))
    return frozenset(next(flags, "").split())
