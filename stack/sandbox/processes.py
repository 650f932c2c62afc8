"""What a process and all that it started take, read from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PAGE = os.sysconf("SC_PAGESIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums over processes. `tasks`: processes and threads. `rss_bytes` counts shared pages each time."""

    pids: tuple[int, ...]
    tasks: int
    cpu_s: float
    rss_bytes: int


def children(pid: int) -> list[int]:
    """Those of all threads of a process; empty when it has ended. Needs CONFIG_PROC_CHILDREN."""
    found: list[int] = []
    for thread in _listing(f"/proc/{pid}/task"):
        found += map(int, _text(f"/proc/{pid}/task/{thread}/children").split())
    return found


def usage(pid: int, most_tasks: int) -> Usage:
    """What descends from `pid`, without itself. Stops looking beyond `most_tasks`."""
    pids: list[int] = []
    waiting, tasks, cpu, rss = children(pid), 0, 0, 0
    while waiting and tasks <= most_tasks:
        each = waiting.pop()
        # After the name, which may hold anything, proc(5) begins with the third field.
        fields = _text(f"/proc/{each}/stat").rpartition(")")[2].split()
        if not fields:
            continue
        pids.append(each)
        cpu += sum(map(int, fields[11:15]))  # also of children that were waited for
        tasks += max(1, int(fields[17]))
        rss += int(fields[21]) * _PAGE
        waiting += children(each)
    return Usage(tuple(pids), tasks, cpu / _TICKS, rss)


def pss_bytes(pids: tuple[int, ...]) -> int:
    """Memory of processes together, shared pages once; pages of files on a tmpfs are not in it."""
    return sum(_pss(pid) for pid in pids)


def _pss(pid: int) -> int:
    sizes = dict(_kib(f"/proc/{pid}/smaps_rollup"))
    return (sizes.get("Pss", 0) - sizes.get("Pss_Shmem", 0) + sizes.get("SwapPss", 0)) << 10


def _kib(path: str) -> Iterator[tuple[str, int]]:
    for line in _text(path).splitlines()[1:]:
        name, _, value = line.partition(":")
        yield name, int(value.split()[0])


def _listing(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:  # ended
        return []


def _text(path: str) -> str:
    try:
        return Path(path).read_bytes().decode(errors="replace")
    except OSError:
        return ""
