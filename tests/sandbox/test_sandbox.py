"""What code gets and gives back."""

from __future__ import annotations

import asyncio
import shutil
import sys
import textwrap
from pathlib import Path

import pytest

from stack.errors import BadRequest, NotReady, Overloaded, TooLarge
from stack.sandbox import sandbox as module
from stack.sandbox.sandbox import Sandbox
from stack.settings import Settings
from tests.sandbox.conftest import run

pytestmark = pytest.mark.usefixtures("nothing_left")


async def test_output_and_exit_code(sandbox: Sandbox) -> None:
    done = await run(sandbox, "import sys\nprint('ü\\ud800')\nprint('e', file=sys.stderr)\nsys.exit(3)")
    assert (done.ended, done.exit_code, done.stdout, done.stderr) == ("exited", 3, "ü\\ud800\n", "e\n")
    assert done.files == ()
    assert done.notes == ()


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        ("1 + 1", "2\n"),
        ("x = 5\nx", "5\n"),
        ("'a'", "'a'\n"),
        ("None", ""),
        ("x = 5", ""),
        ("for i in range(2): i", ""),
        ("print('once')", "once\n"),
        ("from __future__ import annotations\ndef f(x: y): ...\nf.__annotations__", "{'x': 'y'}\n"),
        ("if __name__ == '__main__':\n  print(__name__)", "__main__\n"),
        ("# nothing", ""),
        ("", ""),
    ],
)
async def test_the_value_of_a_last_expression_is_printed(sandbox: Sandbox, code: str, printed: str) -> None:
    done = await run(sandbox, code)
    assert (done.exit_code, done.stdout, done.stderr) == (0, printed, "")


async def test_a_traceback_has_the_scripts_frames_only(sandbox: Sandbox) -> None:
    done = await run(sandbox, "def halve(x):\n    return x / 0\n\nhalve(1)")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[:5] == [
        "Traceback (most recent call last):",
        '  File "script.py", line 4, in <module>',
        "    halve(1)",
        '  File "script.py", line 2, in halve',
        "    return x / 0",
    ]
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "main.py" not in done.stderr


@pytest.mark.parametrize("code", ["x = (1", "a\0b", "(" * 1000, "\ud800"])
async def test_what_is_no_python_is_a_traceback(sandbox: Sandbox, code: str) -> None:
    done = await run(sandbox, code)
    assert (done.ended, done.exit_code) == ("exited", 1)
    assert "Error: " in done.stderr


@pytest.mark.parametrize(
    ("code", "exit_code", "stderr"),
    [
        ("exit()", 0, ""),
        ("raise SystemExit('no')", 1, "no\n"),
        ("import os; os._exit(9)", 9, ""),
        ("import os; os.abort()", 134, ""),
        ("input()", 1, "EOFError: EOF when reading a line\n"),
        ("import subprocess; subprocess.run('ls', shell=True)", 1, "No such file or directory: '/bin/sh'\n"),
    ],
)
async def test_ends_of_scripts(sandbox: Sandbox, code: str, exit_code: int, stderr: str) -> None:
    done = await run(sandbox, code)
    assert (done.ended, done.exit_code) == ("exited", exit_code)
    assert done.stderr.endswith(stderr)


async def test_long_output_keeps_its_beginning_and_its_end(sandbox: Sandbox) -> None:
    done = await run(sandbox, "print('begin')\nprint('x' * 200_000)\nprint('end')")
    assert done.ended == "exited"
    assert done.stdout.startswith("begin\n")
    assert done.stdout.endswith("x\nend\n")
    assert done.notes == ("stdout: 134475 bytes in its middle are left out",)
    assert "… 134475 bytes left out …" in done.stdout


async def test_figures_come_back(sandbox: Sandbox) -> None:
    done = await run(
        sandbox,
        """
        import matplotlib.pyplot as plt
        plt.plot([1, 2])
        plt.show()
        plt.plot([3, 4])
        plt.savefig("mine.svg")
        plt.figure().gca().bar([1], [1])
        """,
    )
    assert (done.exit_code, done.stderr) == (0, "")
    kinds = [(file.name, file.mime_type) for file in done.files]
    assert kinds == [
        ("figure_1.png", "image/png"),
        ("figure_2.png", "image/png"),
        ("mine.svg", "image/svg+xml"),
    ]


async def test_figures_of_code_that_wants_agg_come_back_once(sandbox: Sandbox) -> None:
    begin = "import matplotlib\nmatplotlib.use('Agg')\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\n"
    first, second = await asyncio.gather(run(sandbox, begin), run(sandbox, begin + "plt.savefig('mine.png')"))
    assert [file.name for file in first.files] == ["figure_1.png"]
    assert [file.name for file in second.files] == ["mine.png"]


async def test_the_packages_work(sandbox: Sandbox) -> None:
    done = await run(
        sandbox,
        """
        import asyncio, datetime, ssl, sqlite3, subprocess, sys, zoneinfo
        from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
        import numpy as np
        import pandas as pd
        frame = pd.read_csv("data/table.csv")
        frame["b"] = frame["a"] * np.linalg.norm([3, 4])
        frame.to_csv("out.csv", index=False)
        with ProcessPoolExecutor(2) as pool:
            print(list(pool.map(abs, [-1, 2])))
        with ThreadPoolExecutor(2) as pool:
            print(list(pool.map(abs, [-3])))
        print(asyncio.run(asyncio.sleep(0, 9)), sqlite3.connect("/tmp/x").execute("SELECT 5").fetchall())
        print(datetime.datetime(2026, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")).utcoffset())
        code = "import numpy; print(numpy.zeros(2))"
        print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
        """,
        **{"data/table.csv": b"a\n1\n2\n"},
    )
    assert done.stderr == ""
    assert done.stdout == "[1, 2]\n[3]\n9 [(5,)]\n2:00:00\n[0. 0.]\n\n"
    assert [(file.name, file.content) for file in done.files] == [("out.csv", b"a,b\n1,5.0\n2,10.0\n")]
    assert done.files[0].mime_type == "text/csv"


async def test_given_files_come_back_only_if_they_changed(sandbox: Sandbox) -> None:
    code = "open('a/b.txt', 'a').write('more')\nimport os\nos.rename('c', 'a/d')\nimport own\nprint(own.x)"
    done = await run(sandbox, code, **{"a/b.txt": b"some", "c": b"c", "e": b"e", "own.py": b"x = 7"})
    assert done.stdout == "7\n"
    assert {file.name: file.content for file in done.files} == {"a/b.txt": b"somemore", "a/d": b"c"}


async def test_runs_share_nothing(sandbox: Sandbox) -> None:
    await run(sandbox, "open('/tmp/left', 'w').write('x')\nopen('left', 'w').write('x')")
    done = await run(sandbox, "import os\nprint(os.listdir('/tmp'), os.listdir())")
    assert done.stdout == "[] []\n"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/etc/x", "a/../b", "a//b", "a/", "x\ny", "x" * 300, "\ud800"]
)
async def test_names_of_given_files_are_checked(sandbox: Sandbox, name: str) -> None:
    with pytest.raises(BadRequest, match="is no name for a file"):
        await sandbox.run("", {name: b""})


async def test_what_is_given_is_bounded(sandbox: Sandbox) -> None:
    with pytest.raises(BadRequest, match="as a file and as a folder"):
        await sandbox.run("", {"a": b"", "a/b": b""})
    with pytest.raises(TooLarge, match="33 files"):
        await sandbox.run("", {f"{number}": b"" for number in range(33)})
    with pytest.raises(TooLarge, match="33554433 bytes"):
        await sandbox.run("", {"a": bytes((32 << 20) + 1)})
    with pytest.raises(TooLarge, match="1048577 bytes"):
        await sandbox.run("#" * ((1 << 20) + 1))


async def test_runs_wait_in_order_and_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    sandbox = Sandbox(Settings(sandboxes_at_once=1))
    if await sandbox.unavailable():
        pytest.skip("no sandbox")
    ended: list[int] = []

    async def numbered(number: int) -> None:
        await sandbox.run("import time; time.sleep(0.3)")
        ended.append(number)

    tasks = [asyncio.create_task(numbered(number)) for number in range(5)]
    await asyncio.sleep(0.1)
    tasks[2].cancel()  # one that waits
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert ended == [0, 1, 3]
    assert isinstance(outcomes[2], asyncio.CancelledError)
    assert isinstance(outcomes[4], Overloaded)
    await numbered(6)


# Where there is none


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of its own."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def program(folder: Path, script: str) -> None:
    (folder / "bwrap").write_text(f"#!/bin/sh\n{textwrap.dedent(script)}")
    (folder / "bwrap").chmod(0o755)


async def test_without_bubblewrap_it_says_how_to_get_it(path: Path) -> None:
    sandbox = Sandbox(Settings())
    assert await sandbox.unavailable() == (
        "bubblewrap is not installed; apt-get install bubblewrap (dnf, apk: the same name)"
    )
    with pytest.raises(NotReady, match="apt-get install bubblewrap") as caught:
        await sandbox.run("print(1)")
    assert caught.value.retry_after_s is None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("bwrap: Unknown option --disable-userns", "bubblewrap 0.8 or later is needed"),
        ("bwrap: setting up uid map: Permission denied", "seccomp=unconfined"),
    ],
)
async def test_what_bubblewrap_says_is_told(path: Path, said: str, told: str) -> None:
    program(path, f"echo '{said}' >&2; exit 1")
    reason = await Sandbox(Settings()).unavailable()
    assert reason is not None
    assert said.removeprefix("bwrap: ") in reason
    assert told in reason


async def test_it_is_checked_by_running_it(path: Path) -> None:
    program(path, "exit 0")
    assert "Python does not start in the sandbox" in (await Sandbox(Settings()).unavailable() or "")


async def test_a_run_that_does_not_start_says_so(sandbox: Sandbox, path: Path) -> None:
    real = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")
    program(path, f'[ -e {path}/broken ] && exit 1; exec {real} "$@"')
    own = Sandbox(Settings())
    assert await own.unavailable() is None
    (path / "broken").touch()
    with pytest.raises(NotReady, match="did not start"):
        await own.run("print(1)")
    (path / "broken").unlink()
    (path / "bwrap").rename(path / "moved")
    with pytest.raises(NotReady, match="did not start"):
        await own.run("print(1)")
    (path / "moved").rename(path / "bwrap")
    assert (await own.run("print(1)")).stdout == "1\n"


async def test_there_is_none_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert await Sandbox(Settings()).unavailable() == "there is no sandbox on darwin; run the server on Linux"
