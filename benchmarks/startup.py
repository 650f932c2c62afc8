"""Seconds and memory from `stack up` to the first chat token, with the weights in the cache.

Example, on an otherwise idle machine, nothing listening on the port:

    python benchmarks/startup.py --rounds 3

Time runs from the start of the `stack` process to the first token of a streamed chat, asked for as soon as
the server says that it is ready. Memory is the proportional set size (PSS, Linux), which counts a page that
several processes share once, added up over all processes of the stack.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from urllib.request import Request, urlopen

import psutil

CHAT = {"model_id": "smollm2-135m", "stream": True, "messages": [{"role": "user", "content": "Hello!"}]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8397)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"load average before {os.getloadavg()[0]:.1f}")
    rounds = [start(args.port) for _ in range(args.rounds)]
    for name, column in zip(("seconds", "MiB"), zip(*rounds, strict=True), strict=True):
        print(f"{name}: median {statistics.median(column):.1f}, all {[round(value, 1) for value in column]}")


def start(port: int) -> tuple[float, float]:
    """Seconds and MiB of one start; prints the largest processes."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "stack.cli", "up", "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("ready"):
                break
        url = f"http://127.0.0.1:{port}/v1/inference/chat-completion"
        request = Request(url, json.dumps(CHAT).encode(), {"content-type": "application/json"})
        with urlopen(request) as answer:
            next(line for line in answer if b'"progress"' in line)
            seconds = time.perf_counter() - began
        sizes = sorted(((pss_mib(p), p) for p in family(process.pid)), key=lambda pair: -pair[0])
        for size, child in sizes[:8]:
            print(f"  {size:7.0f} MiB  {' '.join(child.cmdline())[:80]}")
        return seconds, sum(size for size, _ in sizes)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def family(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def pss_mib(process: psutil.Process) -> float:
    return float(process.memory_full_info().pss) / 2**20


if __name__ == "__main__":
    main()
