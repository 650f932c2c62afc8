"""Every store test runs on real SQLite and, where the machine has a server binary, on real Postgres."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

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
            server.terminate()
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


def new_postgres_database(postgres_url: str) -> str:
    """The URL of an empty database in the cluster."""
    import asyncio

    import asyncpg

    name = f"stack_{uuid4().hex[:12]}"

    async def connect() -> asyncpg.Connection:
        """The port is open before the server is ready."""
        while True:
            try:
                return await asyncpg.connect(postgres_url)
            except asyncpg.CannotConnectNowError:
                await asyncio.sleep(0.05)

    async def create() -> None:
        connection = await connect()
        await connection.execute(f'CREATE DATABASE "{name}"')
        await connection.close()

    asyncio.run(create())
    return postgres_url.rsplit("/", 1)[0] + f"/{name}"


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings that name an empty database."""
    if request.param == "sqlite":
        return Settings(home=tmp_path / "home", database_url=None)
    url = new_postgres_database(request.getfixturevalue("postgres_url"))
    return Settings(home=tmp_path / "home", database_url=url)


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    async with open_database(settings) as opened:
        yield opened
