"""`stack keys` on a real database, and the command line with a key against a server that wants one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stack.cli.app import app
from stack.cli.client import Client
from stack.cli.problems import CliError
from stack.cli.up import _own_key
from stack.settings import Settings, get_settings
from tests.ui.conftest import Site


def run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["keys", *args])
    return result.exit_code, result.output.strip()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("STACK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STACK_REQUIRE_API_KEY", "true")
    get_settings.cache_clear()
    yield tmp_path / "home"
    get_settings.cache_clear()


def test_keys_are_made_listed_and_deleted() -> None:
    assert run("list") == (0, "no keys; make one: stack keys create NAME")
    code, key = run("create", "alice")
    assert (code, key[:9]) == (0, "sk-stack-")
    assert run("create", "research", "--record-content")[0] == 0
    assert run("create", "lawyers", "--no-record-content")[0] == 0
    code, listed = run("list")
    assert code == 0
    assert key not in listed
    lines = [line.split() for line in listed.splitlines()[1:]]
    assert [(line[0], " ".join(line[3:])) for line in lines] == [
        ("alice", "as the server's settings say"),
        ("research", "recorded"),
        ("lawyers", "not recorded"),
    ]
    assert run("delete", "alice") == (0, "deleted alice")
    code, said = run("delete", "alice")
    assert code == 1
    assert "API key 'alice' is not registered" in said
    code, said = run("create", "research")
    assert code == 1
    assert "already" in said


def test_a_server_that_wants_a_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(Settings(home=home, require_api_key=True))
    try:
        with Client(site.url) as client, pytest.raises(CliError, match="stack keys create NAME"):
            client.models()
        with _own_key() as key, Client(site.url, key=key) as client:
            assert client.models() == []
        assert run("list")[1].startswith("no keys")
        monkeypatch.setenv("STACK_API_KEY", run("create", "alice")[1])
        with Client(site.url) as client:
            assert client.models() == []
    finally:
        site.close()
