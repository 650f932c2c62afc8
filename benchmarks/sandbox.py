"""What a run in the sandbox costs beside the same code in a plain interpreter, and whom it disturbs.

Examples:

    python benchmarks/sandbox.py
    python benchmarks/sandbox.py --runs 50

Times are medians in milliseconds, from the call to the answer; `python` is this interpreter with `-c`. Below
that, the longest delay of an event loop's tick of 10 ms, while the sandbox runs what takes all it can get.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time

from stack.sandbox.sandbox import Sandbox
from stack.settings import Settings

PLOT = """
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
plt.plot([1])
plt.savefig("/tmp/benchmark.png")
"""
CODES = {
    "print(1)": "print(1)",
    "numpy": "import numpy as np\nprint(np.arange(3).sum())",
    "pandas": "import pandas as pd\nprint(pd.DataFrame({'a': [1]}))",
    "a plot": PLOT,
}
GREEDY = {
    "endless loop": "while True: pass",
    "fork bomb": "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
    "endless output": "while True: print('x' * 1000)",
    "memory": "kept = []\nwhile True: kept.append(b'x' * (1 << 20))",
}


async def medians(sandbox: Sandbox, runs: int) -> None:
    print(f"{'ms':16}{'python':>10}{'sandbox':>10}")
    for name, code in CODES.items():
        plain, boxed = [], []
        for _ in range(runs):
            begun = time.perf_counter()
            await asyncio.to_thread(
                subprocess.run, [sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL
            )
            plain.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            done = await sandbox.run(code)
            boxed.append(time.perf_counter() - begun)
            assert done.exit_code == 0, done
        print(f"{name:16}{statistics.median(plain) * 1000:10.0f}{statistics.median(boxed) * 1000:10.0f}")


async def delays(sandbox: Sandbox) -> None:
    print(f"\n{'':16}{'ended':>10}{'after, s':>10}{'delay, ms':>10}")
    for name, code in GREEDY.items():
        seen: list[float] = []

        async def tick(seen: list[float]) -> None:
            while True:
                begun = time.perf_counter()
                await asyncio.sleep(0.01)
                seen.append(time.perf_counter() - begun - 0.01)

        ticking = asyncio.create_task(tick(seen))
        begun = time.perf_counter()
        done = await sandbox.run(code)
        ticking.cancel()
        print(f"{name:16}{done.ended:>10}{time.perf_counter() - begun:10.2f}{max(seen) * 1000:10.0f}")


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    arguments = parser.parse_args()
    sandbox = Sandbox(Settings(sandbox_timeout_s=5))
    begun = time.perf_counter()
    if (reason := await sandbox.unavailable()) is not None:
        sys.exit(reason)
    print(f"checked once, in {time.perf_counter() - begun:.1f} s\n")
    await medians(sandbox, arguments.runs)
    await delays(sandbox)


if __name__ == "__main__":
    asyncio.run(main())
