"""Milliseconds of a call of the shields that need no model, on a short prompt and on 100 kB.

    python benchmarks/shields.py

Every round runs every shield on every text once, one after the other, so that a slow minute of the machine
slows all of them; the table shows medians over the rounds, and the slowest. The first calls, which start the
processes, are timed by themselves. SQL is included, HTTP is not.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from stack.context import open_stack
from stack.safety.shields import Shields
from stack.schemas.messages import UserMessage
from stack.schemas.shields import RegisterShieldRequest
from stack.settings import Settings

PROMPT = "Write a function that reads a CSV file and returns the sum of its second column, please."
PROSE = "It was the best of times, it was the worst of times, it was the age of wisdom, as he wrote. "
DATA = "Order 4711 of Jane Doe, jane.doe@example.org, +44 20 7946 0958, 12 34 56, 2024-01-02 12:30:45. "
CODE = (
    "def total(path, column=1):\n    with open(path) as file:\n        rows = csv.reader(file)\n"
    "        return sum(float(row[column]) for row in rows if row)\n\n\n"
)
PATTERNS = [
    {"pattern": r"(?i)\bproject (?:ember|flint)\b"},
    {"pattern": r"(a+)+$"},
    {"pattern": r"\b\d{4}-\d{2}-\d{2}T"},
]


def texts() -> dict[str, str]:
    size = 100_000
    return {
        "prompt": PROMPT,
        "code, 200 B": CODE,
        "prose, 100 kB": PROSE * (size // len(PROSE)),
        "personal data, 100 kB": DATA * (size // len(DATA)),
        "code, 100 kB": CODE * (size // len(CODE)),
    }


async def call(shields: Shields, shield_id: str, text: str) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    await shields.run(shield_id, [UserMessage(content=text)], {})
    return 1000 * (time.perf_counter() - started)


async def measure(shields: Shields, rounds: int) -> None:
    for shield_id in ("pii", "regex", "code-scanner"):
        print(f"first call of {shield_id}: {await call(shields, shield_id, CODE):.0f} ms")
    cases = list(itertools.product(texts().items(), ("pii", "regex", "code-scanner")))
    times: dict[tuple[str, str], list[float]] = {(name, shield): [] for (name, _), shield in cases}
    for _ in range(rounds):
        for (name, text), shield in cases:
            times[name, shield].append(await call(shields, shield, text))
    print(f"\n{'text':24}{'shield':16}{'median ms':>10}{'max ms':>10}")
    for (name, shield), measured in times.items():
        print(f"{name:24}{shield:16}{statistics.median(measured):10.2f}{max(measured):10.2f}")
    children = [child.memory_info().rss >> 20 for child in psutil.Process().children()]
    print(f"\nresident memory of the children, MiB: {children}")


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        async with open_stack(Settings(home=Path(home))) as stack:
            request = RegisterShieldRequest.model_validate(
                {"shield_id": "regex", "params": {"patterns": PATTERNS}}
            )
            await stack.shields.register(request)
            await measure(stack.shields, args.rounds)
            stack.shields.close()


if __name__ == "__main__":
    asyncio.run(main())
