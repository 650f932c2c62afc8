"""What README shows and `examples/` holds, run against the real server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.training.tiny import TRAINING_EXAMPLES

if TYPE_CHECKING:
    from tests.serve.conftest import Server

ROOT = Path(__file__).parents[2]
URL = "http://127.0.0.1:8321"
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.name not in TRAINING_EXAMPLES)
"""All but those that train, which tests/serve/test_training.py runs with a tiny model."""


def blocks(language: str) -> list[str]:
    """README's code blocks in a language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )


def run(command: list[str], url: str) -> str:
    environment = os.environ | {"STACK_URL": url}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5
    assert blocks("python")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(path: Path, server: Server) -> None:
    assert f"python examples/{path.name}" in path.read_text()
    assert run([sys.executable, str(path)], server.url).strip()


def test_the_example_of_tools_calls_its_tool(server: Server) -> None:
    printed = run([sys.executable, str(ROOT / "examples/tools.py")], server.url)
    assert printed.startswith("call: get_weather {'city': ")


def test_the_closest_text_is_the_one_on_llamas(server: Server) -> None:
    printed = run([sys.executable, str(ROOT / "examples/embeddings.py")], server.url)
    assert "Llamas" in printed.splitlines()[0]


def test_python_of_the_readme_runs(server: Server) -> None:
    for block in blocks("python"):
        assert URL in block
        assert run([sys.executable, "-c", block.replace(URL, server.url)], server.url).strip()


def test_curl_of_the_readme_is_answered(server: Server) -> None:
    (command,) = [block for block in blocks("bash") if block.startswith("curl")]
    answer = json.loads(
        run(["bash", "-c", command.replace("curl", "curl -sS").replace(URL, server.url)], server.url)
    )
    assert answer["completion_message"]["content"]


def test_the_command_line_talks_with_the_server(server: Server) -> None:
    listed = run([sys.executable, "-m", "stack.cli", "models", "list"], server.url)
    assert {"smollm2-135m", "all-MiniLM-L6-v2"} <= set(listed.split())
    assert listed.count("ready") >= 2
    done = subprocess.run(
        [sys.executable, "-m", "stack.cli", "chat", "smollm2-135m", "--url", server.url],
        input="Say hello.", capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.strip()
