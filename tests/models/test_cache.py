from __future__ import annotations

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stack.models.cache import RECORD, fill_once, folder_for

# Fills a folder slowly: says when it has begun, so that the test can kill it or start another beside it.
SLOW_FILL = """
import sys, time
from pathlib import Path
from stack.models.cache import fill_once

def fill(folder):
    (folder / "weights").write_text("half")
    print("begun", flush=True)
    time.sleep(float(sys.argv[2]))
    (folder / "weights").write_text("whole")
    return {"by": "slow"}

fill_once(Path(sys.argv[1]), fill)
"""


def slow_fill(folder: Path, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_FILL, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def write_whole(folder: Path) -> dict[str, Any]:
    (folder / "weights").write_text("whole")
    return {"by": "test"}


def test_a_killed_fill_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    process = slow_fill(folder, 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not folder.exists()
    fill_once(folder, write_whole)
    assert (folder / "weights").read_text() == "whole"
    assert not list(tmp_path.glob("*.part-*"))


def test_a_second_process_waits_for_the_first_and_does_not_fill_again(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    process = slow_fill(folder, 0.5)
    fill_once(folder, write_whole)
    assert process.wait() == 0
    assert json.loads((folder / RECORD).read_text())["by"] == "slow"


def test_many_at_once_fill_once(tmp_path: Path) -> None:
    calls = []

    def fill(folder: Path) -> dict[str, Any]:
        calls.append(folder)
        return write_whole(folder)

    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: fill_once(tmp_path / "model", fill), range(8)))
    assert len(calls) == 1
    assert set(folders) == {tmp_path / "model"}


def test_a_failed_fill_leaves_nothing_and_may_be_tried_again(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "weights").write_text("half")
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        fill_once(tmp_path / "model", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["model.lock"]
    assert fill_once(tmp_path / "model", write_whole).is_dir()


def test_folders_of_different_sources_differ(tmp_path: Path) -> None:
    sources = ["s3://a/model", "s3://b/model", "pypi://m==1/a.gguf", "pypi://m==2/a.gguf"]
    folders = {folder_for(tmp_path, source) for source in sources}
    assert len(folders) == 4
    assert all(folder.parent == tmp_path for folder in folders)
