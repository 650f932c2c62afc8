"""A real sandbox. Without one the tests are skipped, on CI they fail."""

from __future__ import annotations

import asyncio
import json
import os
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stack.sandbox.execution import Execution
from stack.sandbox.sandbox import Sandbox
from stack.settings import Settings


def _sandbox(**settings: Any) -> Sandbox:
    made = Sandbox(Settings(**settings))
    if (reason := asyncio.run(made.unavailable())) is not None:
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return made


@pytest.fixture(scope="session")
def sandbox() -> Sandbox:
    """With time enough for a busy machine."""
    return _sandbox(sandbox_timeout_s=20, sandbox_memory_mb=512, sandboxes_at_once=2)


@pytest.fixture(scope="session")
def hasty() -> Sandbox:
    """Ends runs after a second and a half."""
    return _sandbox(sandbox_timeout_s=1.5, sandbox_memory_mb=256, sandboxes_at_once=2)


@pytest.fixture(scope="session")
def small() -> Sandbox:
    """Has half the memory, and time enough to use it."""
    return _sandbox(sandbox_timeout_s=20, sandbox_memory_mb=256, sandboxes_at_once=2)


async def run(sandbox: Sandbox, code: str, **files: bytes) -> Execution:
    return await sandbox.run(textwrap.dedent(code), files)


async def answer(sandbox: Sandbox, code: str) -> Any:
    """What the code prints as JSON."""
    done = await run(sandbox, "import ctypes, json, os, sys\n" + textwrap.dedent(code))
    assert (done.ended, done.exit_code) == ("exited", 0), done
    return json.loads(done.stdout)


def processes_with(word: str) -> list[int]:
    """Of this machine, whatever namespace they are in, those whose command line has `word`."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if word.encode() in command:
                found.append(int(folder.name))
    return found


def gone(word: str, within_s: float = 20.0) -> bool:
    """Whether processes with `word` in their command line end."""
    deadline = time.monotonic() + within_s
    while processes_with(word):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """No process of a sandbox outlives the test."""
    before = set(processes_with("/sandbox/main.py"))
    yield
    deadline = time.monotonic() + 20
    while left := set(processes_with("/sandbox/main.py")) - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


async def seen(word: str) -> list[int]:
    """The processes with `word` in their command line, once there are any."""
    async with asyncio.timeout(60):
        while not (found := processes_with(word)):  # noqa: ASYNC110  # nobody sends an event
            await asyncio.sleep(0.02)
        return found
