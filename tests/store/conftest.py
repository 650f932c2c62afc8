"""Every store test runs on real SQLite and, where the machine has a server binary, on real Postgres."""

from __future__ import annotations

import asyncio
import getpass
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from stack.settings import Settings
from stack.store.database import Database, open_database


def _binary(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


def _unprivileged() -> str | None:
    """The user that runs Postgres, which refuses to run as root; None: this user."""
    if os.getuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in users else "nobody"


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A cluster of our own on a free port, gone after the tests."""
    initdb, postgres = _binary("initdb"), _binary("postgres")
    if initdb is None or postgres is None:
        pytest.skip("no Postgres server on this machine (apt-get install postgresql)")
    user = _unprivileged()
    as_user: dict[str, Any] = (
        {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}
    )
    # Not pytest's tmp_path, which only its owner may enter.
    with tempfile.TemporaryDirectory(prefix="stack-pg-", ignore_cleanup_errors=True) as folder:
        if user:
            shutil.chown(folder, user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        data = f"{folder}/data"
        role = user or getpass.getuser()
        subprocess.run(
            [initdb, "-D", data, "-A", "trust", "-U", role, "-E", "UTF8", "--no-sync"],
            check=True, capture_output=True, cwd=folder, **as_user,
        )  # fmt: skip
        server = subprocess.Popen(
            [postgres, "-D", data, "-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1", "-F"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **as_user,
        )  # fmt: skip
        try:
            _wait_for(port, server)
            yield f"postgresql://{role}@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nobody wants what it would still write
            server.wait(timeout=30)


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"Postgres did not start: exit code {server.poll()}")


async def _connect(url: str) -> asyncpg.Connection:
    """The port is open before the server is ready."""
    while True:
        try:
            return await asyncpg.connect(url)
        except asyncpg.CannotConnectNowError:
            await asyncio.sleep(0.05)


def new_postgres_database(postgres_url: str) -> str:
    """The URL of a new database in the cluster, without tables."""
    name = f"stack_{uuid4().hex[:12]}"

    async def create() -> None:
        connection = await _connect(postgres_url)
        await connection.execute(f'CREATE DATABASE "{name}"')
        await connection.close()

    asyncio.run(create())
    return _named(postgres_url, name)


def empty_postgres_database(postgres_url: str) -> str:
    """The URL of a database with empty tables, the same one for every test: a new one takes a second."""
    name = "stack_emptied"

    async def empty() -> None:
        server = await _connect(postgres_url)
        if not await server.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
            await server.execute(f"CREATE DATABASE {name}")
        # What a test left open, a lock among it, ends here.
        await server.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1", name
        )
        await server.close()
        connection = await _connect(_named(postgres_url, name))
        tables = await connection.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename != 'alembic_version'"
        )
        for (table,) in tables:
            await connection.execute(f'DELETE FROM "{table}"')
        await connection.close()

    asyncio.run(empty())
    return _named(postgres_url, name)


def _named(postgres_url: str, database: str) -> str:
    return f"{postgres_url.rpartition('/')[0]}/{database}"


@pytest.fixture(autouse=True)
def migrated() -> None:
    """Here each new database is migrated by itself."""


@pytest.fixture(params=["sqlite", "postgres"])
def new_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings that name a database without tables."""
    url = None
    if request.param == "postgres":
        url = new_postgres_database(request.getfixturevalue("postgres_url"))
    return Settings(home=tmp_path / "home", database_url=url)


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings that name an empty database."""
    url = None
    if request.param == "postgres":
        url = empty_postgres_database(request.getfixturevalue("postgres_url"))
    return Settings(home=tmp_path / "home", database_url=url)


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    async with open_database(settings) as opened:
        yield opened
