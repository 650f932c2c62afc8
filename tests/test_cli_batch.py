"""What `stack batch run` and `stack eval` refuse before they do anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from stack.cli.app import app

NOBODY = "http://127.0.0.1:9"


def run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*args, "--url", NOBODY])
    return result.exit_code, result.output


@pytest.mark.parametrize("content", ["", "no", "[1]", '{"text": "a"}'])
def test_a_file_without_prompts(tmp_path: Path, content: str) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(content)
    code, said = run("batch", "run", "--model", "m", "--input", str(file), "--output", "out.jsonl")
    assert (code, "the first line is no JSON object with messages or content" in said) == (1, True)


def test_no_file_and_no_server(tmp_path: Path) -> None:
    code, said = run("batch", "run", "--model", "m", "--input", "none.jsonl", "--output", "out.jsonl")
    assert (code, "there is no file none.jsonl" in said) == (1, True)
    file = tmp_path / "in.jsonl"
    file.write_text('{"content": "a"}')
    code, said = run("batch", "run", "--model", "m", "--input", str(file), "--output", "out.jsonl")
    assert (code, "start one: stack up" in said) == (1, True)
    for command in (["list"], ["show", "a"], ["compare", "a", "b"], ["run", "a", "--model", "m"]):
        code, said = run("eval", *command)
        assert (code, "start one: stack up" in said) == (1, True)


@pytest.mark.parametrize("command", ["batch run", "eval list", "eval run", "eval show", "eval compare"])
def test_help_has_examples(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert f"stack {command}" in result.output
