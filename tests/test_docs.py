"""The docs say all there is to say: settings, commands, options, pins, and commands that CI runs."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from typer.main import get_command

from stack.cli.app import app
from stack.cli.environment import EVERYWHERE
from stack.settings import Settings

ROOT = Path(__file__).parents[1]
DOCS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


def commands() -> dict[str, set[str]]:
    """`models list` -> its options, in the long form."""
    found: dict[str, set[str]] = {}

    def walk(command: object, name: str) -> None:
        below = getattr(command, "commands", None)
        if below is None:
            options = [option for parameter in command.params for option in parameter.opts]  # type: ignore[attr-defined]  # a Command
            found[name] = {option for option in options if option.startswith("--")} - {"--help"}
            return
        for key, value in below.items():
            walk(value, f"{name} {key}".strip())

    walk(get_command(app), "")
    return found


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs/settings.md").read_text()
    rows = dict(re.findall(r"^\| `STACK_(\w+)` \| ([^|]+) \|", text, re.MULTILINE))
    assert rows.keys() - {"URL"} == {name.upper() for name in Settings.model_fields}
    for name, setting in Settings.model_fields.items():
        if isinstance(setting.default, str | int | float) and setting.default != "":
            assert rows[name.upper()].strip("`").lower() == str(setting.default).lower().removesuffix(".0")


@pytest.mark.parametrize("name", commands())
def test_every_command_is_documented(name: str) -> None:
    sections = re.split(r"^## ", (ROOT / "docs/cli.md").read_text(), flags=re.MULTILINE)
    (section,) = [s for s in sections if re.match(rf"`stack {name}\b", s)]
    for option in commands()[name]:
        assert f"`{option}`" in section, f"{option} of stack {name}"


def test_links_lead_somewhere() -> None:
    links = [(doc, link) for doc in DOCS for link in re.findall(r"\]\(([^)#]+)\)", doc.read_text())]
    assert links
    for doc, link in links:
        assert link.startswith("https://") or (doc.parent / link).exists(), f"{doc.name}: {link}"


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = bash_blocks("README.md")[-1]
    assert command.endswith(".venv/bin/pytest")
    for path in (".ci/run", "CONTRIBUTING.md"):
        assert command in (ROOT / path).read_text().splitlines()


def test_every_dependency_is_pinned_within_its_range() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert all(re.fullmatch(r"[0-9a-z.!]+", version) for version in pins.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, wanted):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in pins, f"{name}: run .ci/pin.py"
        assert requirement.specifier.contains(pins[name], prereleases=True)


def test_the_licence_is_there_in_full() -> None:
    assert (ROOT / "LICENSE").read_text().lstrip().startswith("Apache License")
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"


def test_clusters_start_with_the_environment_of_a_laptop() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    for commands_ in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        words = commands_[-1].replace(";", " ").split()
        for name, value in EVERYWHERE.items():
            assert f"{name}={value}" in words


def test_the_cluster_launcher_takes_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text())))


def bash_blocks(path: str) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / path).read_text(), re.MULTILINE | re.DOTALL)
    return [block.strip() for block in blocks]


def test_examples_run_with_the_pinned_client() -> None:
    pinned = f"llama-stack-client=={distribution('llama-stack-client').version}"
    assert pinned in (ROOT / "README.md").read_text()
