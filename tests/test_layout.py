"""The house is built as docs/architecture.md says: imports point one way, and an API replica stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "stack"

LAYERS = (
    {"errors", "settings", "schemas", "logs", "metrics", "tracing", "bounded"},
    {"egress", "store", "engine", "models", "telemetry"},
    {"files", "jobs"},
    {"datasets", "vector"},
    {"batch", "rag", "safety", "sandbox", "scoring", "synthetic", "training"},
    {"tools"},
    {"agents"},
    {"evaluation"},
    {"api", "context", "middleware", "providers", "sse", "upkeep"},
    {"app"},
    {"serve"},
    {"cli"},
)
"""The packages and modules of `stack`. Each may import its own layer and those above it in this list."""

HEAVY = frozenset({"torch", "transformers", "sentence_transformers", "lancedb", "ray.data", "ray.train"})
"""What only model replicas and jobs load."""

MAX_LINES = 500


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module that the file imports anywhere, within functions and for type checking included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(module: str) -> str | None:
    """`stack.store.tables` -> `store`; None for what is not ours, and for `stack` itself and its contents."""
    names = module.split(".")
    if names[0] != "stack" or len(names) == 1:
        return None
    is_part = (PACKAGE / names[1]).is_dir() or (PACKAGE / f"{names[1]}.py").is_file()
    return names[1] if is_part else None


def layer_of(part: str) -> int:
    for number, layer in enumerate(LAYERS):
        if part in layer:
            return number
    raise AssertionError(
        f"stack.{part} has no layer: give it one in LAYERS and a line in docs/architecture.md"
    )


def test_imports_point_one_way() -> None:
    checked, wrong = 0, []
    for path in modules():
        relative = path.relative_to(PACKAGE)
        if relative == Path("__init__.py"):
            continue
        part = relative.parts[0].removesuffix(".py")
        for module in imports(path):
            if (imported := part_of(module)) is not None:
                checked += 1
                if layer_of(imported) > layer_of(part):
                    wrong.append(f"{relative} imports {module}")
    assert wrong == []
    assert checked > 100


def test_only_serve_imports_ray_serve() -> None:
    users = {
        path.relative_to(PACKAGE).parts[0]
        for path in modules()
        if any(module == "ray.serve" or module.startswith("ray.serve.") for module in imports(path))
    }
    assert users == {"serve"}


def test_package_itself_imports_nothing() -> None:
    """`import stack.schemas` runs stack/__init__.py first."""
    assert list(imports(PACKAGE / "__init__.py")) == []


@pytest.mark.parametrize(
    "code",
    ["from stack.app import create_app; create_app().openapi()", "import stack.cli.app"],
    ids=["app", "cli"],
)
def test_light_processes_import_nothing_heavy(code: str) -> None:
    program = f"import sys\n{code}\nprint(*sys.modules, sep='\\n')"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True, text=True
    )
    loaded = set(result.stdout.split())
    assert "pydantic" in loaded or "typer" in loaded
    assert loaded & HEAVY == set()


def test_modules_are_short() -> None:
    files = [path for folder in ("stack", "jobs", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    lines = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in files}
    assert len(lines) > 50
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}
