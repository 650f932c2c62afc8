from __future__ import annotations

import hashlib
import importlib.metadata
import zipfile
from pathlib import Path

import pytest

from stack.errors import BadRequest, UpstreamError
from stack.models import wheels
from stack.models.wheels import WheelSource
from tests.models.tiny import make_wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def unpack(source: str, tmp_path: Path) -> dict[str, object]:
    target = tmp_path / "target"
    target.mkdir()
    return wheels.unpack(WheelSource.parse(source), target, lambda *_: None)


def test_a_folder_of_a_wheel_is_unpacked(index: Path, tmp_path: Path) -> None:
    files = {
        "tiny/model/config.json": b"{}",
        "tiny/model/1_Pooling/config.json": b"[]",
        "tiny/__init__.py": b"",
    }
    wheel = make_wheel(index, "tinymodel", "1.0", files)
    record = unpack("pypi://tinymodel==1.0/tiny/model", tmp_path)
    target = tmp_path / "target"
    assert (target / "config.json").read_bytes() == b"{}"
    assert (target / "1_Pooling/config.json").read_bytes() == b"[]"
    assert not (target / "__init__.py").exists()
    assert record["sha256"] == hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_a_file_of_a_wheel_is_unpacked(index: Path, tmp_path: Path) -> None:
    wheel = make_wheel(index, "tinymodel", "1.0", {"tiny/a.gguf": b"GGUF", "tiny/a.gguf.txt": b""})
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    unpack(f"pypi://tinymodel==1.0/tiny/a.gguf#sha256={sha256}", tmp_path)
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["a.gguf"]


def test_a_wheel_with_another_hash_is_refused(index: Path, tmp_path: Path) -> None:
    make_wheel(index, "tinymodel", "1.0", {"tiny/a.gguf": b"GGUF"})
    with pytest.raises(BadRequest, match=f"not {'0' * 64}"):
        unpack(f"pypi://tinymodel==1.0/tiny/a.gguf#sha256={'0' * 64}", tmp_path)


def test_a_damaged_member_is_refused(index: Path, tmp_path: Path) -> None:
    wheel = make_wheel(index, "tinymodel", "1.0", {"tiny/a.gguf": b"GGUF"})
    contents = {}
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, b"EVIL" if name.endswith(".gguf") else content)
    with pytest.raises(UpstreamError, match="damaged"):
        unpack("pypi://tinymodel==1.0/tiny/a.gguf", tmp_path)


@pytest.mark.parametrize(
    "name", ["tiny/model/../../../../evil", "tiny/model//etc/evil", "tiny/model/..\\evil"]
)
def test_a_member_that_points_outside_is_refused(index: Path, tmp_path: Path, name: str) -> None:
    make_wheel(index, "tinymodel", "1.0", {name: b"evil"})
    with pytest.raises(BadRequest, match="points outside"):
        unpack("pypi://tinymodel==1.0/tiny/model", tmp_path)
    assert not list(tmp_path.rglob("evil"))


def test_what_the_index_or_the_wheel_lacks_is_said(index: Path, tmp_path: Path) -> None:
    make_wheel(index, "tinymodel", "1.0", {"tiny/a.gguf": b"GGUF"})
    with pytest.raises(BadRequest, match=r"has no 'tiny/b\.gguf'"):
        unpack("pypi://tinymodel==1.0/tiny/b.gguf", tmp_path)
    (tmp_path / "target").rmdir()
    with pytest.raises(UpstreamError, match=r"tinymodel==2\.0"):
        unpack("pypi://tinymodel==2.0/tiny/a.gguf", tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        "pypi://tinymodel/tiny/a.gguf",
        "pypi://tinymodel==1.0",
        "pypi://tinymodel==1.0/",
        "pypi://--index-url=x==1.0/a",
        "pypi://tinymodel==1.0/../a",
        "pypi://tinymodel==1.0 --pre/a",
        "pypi://tinymodel==1.0/a#sha256=12",
    ],
)
def test_sources_that_are_none(source: str) -> None:
    with pytest.raises(BadRequest, match="write pypi://package==version/path"):
        WheelSource.parse(source)


def test_an_installed_package_is_read_in_place(tmp_path: Path) -> None:
    import platformdirs

    version = importlib.metadata.version("platformdirs")
    record = unpack(f"pypi://platformdirs=={version}/platformdirs", tmp_path)
    copy = tmp_path / "target/__init__.py"
    assert record["from"] == "installed package"
    assert platformdirs.__file__ is not None
    assert copy.read_bytes() == Path(platformdirs.__file__).read_bytes()
    assert wheels.installed(WheelSource("platformdirs", "0.0.0", "platformdirs")) is None
