"""Code that takes too much: it ends in bounded time, nothing is left, and nobody else notices."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time

import pytest

from stack.sandbox.check import check
from stack.sandbox.command import Limits
from stack.sandbox.outputs import MAX_FILES
from stack.sandbox.run import Run
from stack.sandbox.sandbox import Sandbox
from tests.sandbox.conftest import gone, processes_with, run, seen

pytestmark = pytest.mark.usefixtures("nothing_left")

FORK_BOMB = """
    import os
    while True:
        try:
            os.fork()
        except OSError:
            pass
    """
DEAF = """
    import signal
    for number in {*range(1, 32)} - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    while True:
        pass
    """
THREAD_BOMB = """
    import threading, time
    while True:
        try:
            threading.Thread(target=time.sleep, args=(600,)).start()
        except RuntimeError:
            pass
    """
MEMORY_OF_MANY = """
    import os, time
    for _ in range(12):
        if os.fork() == 0:
            kept = b"x" * (40 << 20)
            time.sleep(600)
    time.sleep(600)
    """
TOO_MANY_FILES = """
    import os
    for number in range(1_000_000):
        open(f"{number}", "w").close()
    """


def sleeping(word: str) -> str:
    command = f"[sys.executable, '-c', 'import time; time.sleep(600)', '{word}']"
    return f"import subprocess, sys\nsubprocess.run({command})"


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        pytest.param("while True: pass", "time", id="loop"),
        pytest.param(
            DEAF,
            "time",
            id="loop-deaf-to-signals",
        ),
        pytest.param("import time, os\nos.close(1)\nos.close(2)\ntime.sleep(600)", "time", id="sleep"),
        pytest.param("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "time", id="stop"),
        pytest.param("while True: print('x' * 1000)", "output", id="output"),
        pytest.param("import os\nwhile True: os.write(2, b'x' * 65536)", "output", id="errors"),
        pytest.param(FORK_BOMB, "processes", id="forks"),
        pytest.param(THREAD_BOMB, "processes", id="threads"),
        pytest.param(MEMORY_OF_MANY, "memory", id="memory-of-many"),
        pytest.param(TOO_MANY_FILES, "disk", id="files"),
    ],
)
async def test_it_is_ended(hasty: Sandbox, small: Sandbox, code: str, ended: str) -> None:
    begun = time.monotonic()
    done = await run(hasty if ended == "time" else small, code)
    assert (done.ended, done.exit_code) == (ended, 137)
    assert time.monotonic() - begun < 15
    assert done.notes[0].startswith("ended: it ")
    assert len(done.stdout) < 70_000 > len(done.stderr)
    assert len(done.files) <= MAX_FILES


def test_cpu_time_counts_over_all_processes(sandbox: Sandbox) -> None:
    (place,) = check(256 << 20, 1).places
    code = "import os\nfor _ in range(2): os.fork()\nwhile True: pass"
    begun = time.monotonic()
    limits = Limits(timeout_s=60, cpu_s=1, memory_bytes=256 << 20)
    done = Run(place, limits)(code, {}, {})
    assert done.ended == "time"
    assert time.monotonic() - begun < 50
    one_after_the_other = """
import os
for _ in range(40):
    if os.fork() == 0:
        while os.times().user < 0.1: pass
        os._exit(0)
    os.wait()
"""
    assert Run(place, limits)(one_after_the_other, {}, {}).ended == "time"


async def test_memory_of_one_process_is_an_error_that_code_can_handle(small: Sandbox) -> None:
    done = await run(
        small,
        """
        kept = []
        try:
            while True:
                kept.append(b"x" * (1 << 20))
        except MemoryError:
            had = len(kept)
            kept.clear()
            print(had)
        kept = bytearray(1 << 40)
        """,
    )
    assert (done.ended, done.exit_code) == ("exited", 1)
    assert 100 < int(done.stdout) < 256
    assert done.stderr.endswith("MemoryError\n")
    assert "line 10" in done.stderr


async def test_a_full_disk_is_an_error_and_is_empty_for_the_next(small: Sandbox) -> None:
    for _ in range(3):
        done = await run(
            small,
            """
            written = 0
            for number in range(100):
                with open(f"/tmp/{number}", "wb", buffering=0) as file:
                    written += file.write(b"x" * (1 << 20))
            """,
        )
        assert "No space left on device" in done.stderr
        assert (done.ended, done.exit_code, done.files) == ("exited", 1, ())


async def test_files_count_as_memory(small: Sandbox) -> None:
    taken = "kept = b'x' * (190 << 20)\n"
    assert (await run(small, taken + "import time\ntime.sleep(0.3)")).ended == "exited"
    fill = "file = open('/tmp/full', 'wb')\nfor _ in range(60): file.write(kept[: 1 << 20])\nwhile True: pass"
    assert (await run(small, taken + fill)).ended == "memory"


async def test_a_file_has_an_end(small: Sandbox) -> None:
    done = await run(small, "with open('x', 'wb') as file:\n  file.seek(1 << 30)\n  file.write(b'x')")
    assert "File too large" in done.stderr


async def test_daemons_end_with_the_script(sandbox: Sandbox) -> None:
    word = secrets.token_hex(8)
    daemon = f"""
        import os, subprocess, sys, time
        code = "import os, time; os.setsid(); os.fork() and os._exit(0); time.sleep(600)"
        subprocess.run([sys.executable, "-c", code, "{word}"], stdin=-3, stdout=-3, stderr=-3)
        """
    task = asyncio.create_task(run(sandbox, daemon + "time.sleep(1)\n"))
    assert len(await seen(word)) >= 1
    done = await task
    assert (done.ended, done.exit_code) == ("exited", 0)
    assert not processes_with(word)


async def test_cancelling_a_run_ends_it_at_once(sandbox: Sandbox) -> None:
    word = secrets.token_hex(8)
    task = asyncio.create_task(run(sandbox, sleeping(word)))
    await seen(word)
    begun = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not processes_with(word)
    assert time.monotonic() - begun < 5
    assert (await run(sandbox, "print(1)")).stdout == "1\n"


async def test_a_killed_server_takes_its_runs_along() -> None:
    word = secrets.token_hex(8)
    server = f"""
import asyncio
from stack.sandbox.sandbox import Sandbox
from stack.settings import Settings
code = {sleeping(word)!r}
asyncio.run(Sandbox(Settings()).run(code))
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", server)
    await seen(f"time.sleep(600)\0{word}")
    process.kill()
    await process.wait()
    assert await asyncio.to_thread(gone, word)


@pytest.mark.parametrize("code", [FORK_BOMB, MEMORY_OF_MANY, "while True: print('x' * 1000)"])
async def test_others_go_on(small: Sandbox, sandbox: Sandbox, code: str) -> None:
    """The event loop and another run, while one takes all it can get."""
    delays: list[float] = []

    async def tick() -> None:
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.01)
            delays.append(time.monotonic() - begun)

    ticking = asyncio.create_task(tick())
    _, other = await asyncio.gather(run(small, code), run(sandbox, "print(sum(range(100_000)))"))
    ticking.cancel()
    assert other.stdout == "4999950000\n"
    assert max(delays) < 2.0
