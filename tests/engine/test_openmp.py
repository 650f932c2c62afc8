"""Threads that compute once must not slow down those that compute all the time."""

import subprocess
import sys
from pathlib import Path

import pytest

from stack.engine import openmp

_COUNT = """
import os, threading, time, torch
from stack.engine.openmp import in_ending_thread

def compute():
    torch.ones(2000, 2000) @ torch.ones(2000, 2000)

def threads(expected):
    end = time.monotonic() + 10  # that a pool ends takes a moment
    while (found := len(os.listdir("/proc/self/task"))) != expected and time.monotonic() < end:
        time.sleep(0.01)
    return found

torch.set_num_threads(2)
alone = threads(1)
assert in_ending_thread(lambda: compute() or 7) == 7
print(threads(alone) - alone)
threading.Thread(target=lambda: (compute(), print(threads(alone + 2) - alone))).start()
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_only_the_thread_that_stays_has_a_pool() -> None:
    done = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "2"]  # the thread itself and one of its pool


def test_errors_are_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        openmp.in_ending_thread(lambda: 1 // 0)


def test_waiting_threads_sleep_where_the_kernels_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # so that it is as before afterwards
    monkeypatch.delenv("OMP_WAIT_POLICY")
    for flags, policy in ((frozenset({"avx2"}), None), (frozenset({"avx512_bf16"}), "PASSIVE")):
        monkeypatch.setattr(openmp, "_cpu_flags", lambda flags=flags: flags)
        openmp.let_kernels_have_cpus()
        assert openmp.os.environ.get("OMP_WAIT_POLICY") == policy
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    openmp.let_kernels_have_cpus()
    assert openmp.os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
