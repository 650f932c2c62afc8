"""`stack agent` against a real HTTP server with the real routes, and a model that says what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from stack.cli.app import app
from tests.agents.instant import call, script
from tests.agents.server import Replica


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    replica = Replica(tmp_path_factory.mktemp("home"))
    try:
        yield replica.wait()
    finally:
        replica.kill()


def run(url: str, *args: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["agent", *args, "--url", url], input=stdin)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "helper.yaml"
    path.write_text("toolgroups: [local]\ninput_shields: [pii]\n")
    return path


def test_steps_are_shown(url: str, file: Path, tmp_path: Path) -> None:
    result = run(url, str(file), script([call("echo", text="hi")], ["It ", "says hi."]))
    assert result.exit_code == 0, result.output
    assert result.stdout == "It says hi.\n"
    assert result.stderr.splitlines() == [
        "[shield] pii user-input: nothing found",
        '[tool] echo {"text": "hi"}',
        "  -> hi",
    ]
    assert httpx.get(f"{url}/v1/agents").json()["data"] == []


def test_what_is_piped_in_is_a_message(url: str, file: Path) -> None:
    assert run(url, str(file), stdin=script(["Piped."])).stdout == "Piped.\n"
    assert "nothing was piped in" in run(url, str(file), stdin="").output


def test_shield_speaks_in_place_of_the_model(url: str, file: Path) -> None:
    result = run(url, str(file), "My card is 4111 1111 1111 1111.")
    assert "[shield] pii user-input: error: " in result.stderr
    assert result.stdout.strip()


def test_files_are_saved(url: str, file: Path, tmp_path: Path) -> None:
    text = script([call("picture")], ["Drawn."])
    assert "--save FOLDER keeps it" in run(url, str(file), text).stderr
    result = run(url, str(file), text, "--save", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["helper-1.png", "helper-2.csv"]
    assert (tmp_path / "out" / "helper-2.csv").read_text() == "a,b\n"


def test_agent_can_be_kept(url: str, file: Path) -> None:
    result = run(url, str(file), script(["Kept."]), "--keep")
    (agent,) = httpx.get(f"{url}/v1/agents").json()["data"]
    assert agent["agent_id"] in result.stderr
    httpx.delete(f"{url}/v1/agents/{agent['agent_id']}")


def test_documents_go_with_the_first_message(url: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Llamas eat hay.")
    path = tmp_path / "agent.yaml"
    path.write_text("documents: ['*.txt']\n")
    result = run(url, str(path), script(["Read."]), "--keep")
    (agent,) = httpx.get(f"{url}/v1/agents").json()["data"]
    sessions = httpx.get(f"{url}/v1/agents/{agent['agent_id']}/sessions").json()["data"]
    session_id = sessions[0]["session_id"]
    turns = httpx.get(f"{url}/v1/agents/{agent['agent_id']}/session/{session_id}").json()["turns"]
    assert "Llamas eat hay." in turns[0]["input_messages"][0]["context"]
    httpx.delete(f"{url}/v1/agents/{agent['agent_id']}")
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("toolgroup: [local]", "line 1: toolgroup: unknown key; did you mean 'toolgroups'?"),
        ("model: tiny\nmax_infer_iters: none", "line 2: max_infer_iters: 'none' is wrong"),
        ("toolgroups: [nothing]", "nothing"),
        ("model: none", "model 'none' is not registered"),
        ("documents: [missing.txt]", "there is no file 'missing.txt'"),
        ("documents: [/none/missing.txt]", "there is no file '/none/missing.txt'"),
        ("documents: ['']", "no pattern"),
        ("mcp_servers: {mcp::x: 'http://127.0.0.1:1/mcp'}", "not a public host"),
        ("[1, 2]", "must be a mapping"),
        ("a: [", "line"),
    ],
)
def test_bad_file_is_told(url: str, tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(content)
    result = run(url, str(path), "Hello")
    assert result.exit_code == 1
    assert says in result.output
    assert "Traceback" not in result.output
    assert httpx.get(f"{url}/v1/agents").json()["data"] == []


def test_missing_file_and_server(tmp_path: Path, file: Path) -> None:
    assert "there is no file" in run("http://127.0.0.1:9", str(tmp_path / "no.yaml"), "x").output
    assert "no server answers" in run("http://127.0.0.1:9", str(file), "x").output
