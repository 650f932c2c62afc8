"""Reading what hostile code left in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.sandbox.execution import OutputFile
from stack.sandbox.outputs import collect, mime_type


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    work = tmp_path / "work"
    work.mkdir()
    fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    yield work, fd
    os.close(fd)


def test_files_are_read_in_order(folder: tuple[Path, int]) -> None:
    work, fd = folder
    (work / "sub" / "sub").mkdir(parents=True)
    (work / "b.txt").write_text("b")
    (work / "a.txt").write_text("a")
    (work / "sub" / "sub" / "c.csv").write_text("c")
    files, notes = collect(fd, {"b.txt": b"b", "a.txt": b"other"})
    assert notes == []
    assert files == [OutputFile("a.txt", "text/plain", b"a"), OutputFile("sub/sub/c.csv", "text/csv", b"c")]


def test_links_pipes_and_odd_names_are_left_out(folder: tuple[Path, int], tmp_path: Path) -> None:
    work, fd = folder
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "x").write_text("secret")
    (work / "link").symlink_to(tmp_path / "secret")
    (work / "folder").symlink_to(tmp_path / "secrets")
    os.mkfifo(work / "pipe")
    (work / "line\nbreak").write_text("x")
    Path(os.fsdecode(bytes(work) + b"/\xff")).write_text("x")
    files, notes = collect(fd, {})
    assert files == []
    assert len(notes) == 5
    assert all("\n" not in note and note.isprintable() for note in notes)


def test_number_size_and_depth_are_bounded(folder: tuple[Path, int]) -> None:
    work, fd = folder
    with (work / "0sparse").open("wb") as file:
        file.truncate(1 << 40)
    for number in range(20):
        (work / f"{number:02}").write_bytes(bytes(1 << 20 if number < 7 else 1))
    inner = work
    for _ in range(40):
        inner = inner / "d"
        inner.mkdir()
    (inner / "bottom").write_text("x")
    files, notes = collect(fd, {})
    assert len(files) == 16
    assert sum(len(file.content) for file in files) <= 8 << 20
    assert "4 more files are left out: a run gives back up to 16" in notes
    assert any("d/d/d" in note for note in notes)
    assert any(note.startswith("0sparse is left out") for note in notes)


def test_notes_are_bounded(folder: tuple[Path, int]) -> None:
    work, fd = folder
    for number in range(2000):
        (work / f"{number}").symlink_to("/")
    files, notes = collect(fd, {})
    assert files == []
    assert len(notes) == 9
    assert notes[-1] == "and 993 more are left out"


@pytest.mark.parametrize(
    ("name", "content", "mime"),
    [
        ("x.png", b"\x89PNG\r\n\x1a\n...", "image/png"),
        ("x.txt", b"\x89PNG\r\n\x1a\n...", "image/png"),
        ("x.csv", b"a,b", "text/csv"),
        ("x.json", b"{}", "application/json"),
        ("x", "ü".encode(), "text/plain"),
        ("x", b"\xff\x00", "application/octet-stream"),
        ("x.csv.gz", b"\x1f\x8b\xff", "application/octet-stream"),
    ],
)
def test_the_kind_of_a_file(name: str, content: bytes, mime: str) -> None:
    assert mime_type(name, content) == mime
