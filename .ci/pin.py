"""Print the releases of this environment that `stack[dev]` needs, directly or not, as pip constraints."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def main() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["dev"]]
    pins: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    while wanted:
        requirement = wanted.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        extras = frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found = distribution(name)
        except PackageNotFoundError:
            sys.exit(f"{name} is not installed here: pip install -e '.[dev]'")
        pins[name] = found.version.split("+")[0]  # without the build, e.g. +cpu
        for line in found.requires or []:
            further = Requirement(line)
            if further.marker is None or any(further.marker.evaluate({"extra": e}) for e in (extras or {""})):
                wanted.append(further)
    lines = ["# What CI runs, made by .ci/pin.py: pip install -c constraints.txt '.[dev]'"]
    sys.stdout.write("\n".join(lines + [f"{name}=={pins[name]}" for name in sorted(pins)]) + "\n")


main()
