"""Reads a Serve config file, and says of each bad line what to write instead.

Ray's own schema lets unknown keys pass, so a misspelt `num_replcas` would silently do nothing; here it is a
problem. The `args` of `stack.serve`'s builders are checked against the builder's own model.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import BaseModel, ValidationError

from stack.cli.problems import CliError, Key, Problem, did_you_mean, dotted, explain

DEFAULT = Path("deployments/stack.yaml")


def find(path: Path | None) -> Path:
    """The config file: the one given, `deployments/stack.yaml` here, or the one in the package."""
    if path is not None:
        if not path.is_file():
            raise CliError(f"there is no file {path}; write the path of a Serve config, e.g. {DEFAULT}")
        return path
    packaged = Path(__file__).parents[1] / DEFAULT
    checkout = Path(__file__).parents[2] / DEFAULT
    for candidate in (DEFAULT, packaged, checkout):
        if candidate.is_file():
            return candidate
    raise CliError(f"there is no {DEFAULT} here; write the path of a Serve config: stack up PATH")


def load(path: Path) -> dict[str, Any]:
    """The file's contents, checked. Raises CliError with every problem found.

    Imports ray.serve, so Ray's environment must be set before.
    """
    data, lines = parse(path)
    problems = list(_check(data, lines))
    if problems:
        listed = "\n".join(f"  {problem}" for problem in sorted(problems, key=lambda p: p.line or 0))
        raise CliError(f"{path} has {len(problems)} problem{'s'[: len(problems) > 1]}:\n{listed}")
    return data


def parse(path: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    """A YAML file's mapping, and the line of each key in it. Raises CliError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"cannot read {path}: {error}") from None
    return parse_text(text, path)


def parse_text(text: str, path: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    """As `parse`; `path` is where the text came from."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise CliError(f"{path}{where}: {error.problem or error}") from None
    except yaml.YAMLError as error:
        raise CliError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise CliError(f"{path} must be a mapping of keys to values")
    lines: dict[Key, int] = {}
    if node is not None:
        _mark(node, (), lines, path)
    return data, lines


def _mark(node: yaml.Node, key: Key, lines: dict[Key, int], path: Path) -> None:
    """Note the line of every key below `node`; a key that stands twice is an error, YAML drops the first."""
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            line = name.start_mark.line + 1
            below = (*key, name.value)
            if below in lines:
                raise CliError(f"{path} line {line}: {dotted(below)} is already on line {lines[below]}")
            lines[below] = line
            _mark(value, below, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _mark(value, (*key, index), lines, path)


def _check(data: dict[str, Any], lines: dict[Key, int]) -> Iterator[Problem]:
    from stack.serve.run import ServeDeploySchema

    if not data.get("applications"):
        yield Problem("applications", "missing; list at least one application", lines.get(("applications",)))
        return
    unknown = list(_unknown_keys(data, ServeDeploySchema, ()))
    for key, message in unknown:
        yield Problem(dotted(key), message, line_of(lines, key))
    try:
        ServeDeploySchema.model_validate(data)
    except ValidationError as error:
        reported = {key for key, _ in unknown}
        for key, message in explain(error, ServeDeploySchema):
            if key not in reported:
                yield Problem(dotted(key), message, line_of(lines, key))
        return
    for index, application in enumerate(data["applications"]):
        yield from _check_application(application, ("applications", index), lines)


def _check_application(application: dict[str, Any], at: Key, lines: dict[Key, int]) -> Iterator[Problem]:
    module, _, name = application["import_path"].replace(":", ".").rpartition(".")
    if not module.startswith("stack."):
        return  # someone else's application; Ray imports it in the cluster
    where = (*at, "import_path")
    try:
        builder = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        yield Problem(dotted(where), f"there is no module {error.name!r}", line_of(lines, where))
        return
    except AttributeError:
        hint = did_you_mean(name, ("api", "model", "reconciler"))
        yield Problem(dotted(where), f"{module} has no {name!r}; {hint}", line_of(lines, where))
        return
    model = args_model(builder)
    if model is None:
        return
    where = (*at, "args")
    try:
        args = model.model_validate(application.get("args") or {})
    except ValidationError as error:
        for key, message in explain(error, model):
            key = (*where, *key)
            yield Problem(dotted(key), message, line_of(lines, key))
        return
    yield from _check_name(application, args, at, lines)
    try:
        builder(args)
    except ValueError as error:  # builders refuse what a single field cannot tell
        yield Problem(dotted(where), str(error), line_of(lines, where))


def _check_name(
    application: dict[str, Any], args: BaseModel, at: Key, lines: dict[Key, int]
) -> Iterator[Problem]:
    from stack.models.args import ModelArgs
    from stack.models.names import app_name

    if isinstance(args, ModelArgs) and application["name"] != app_name(args.model_id):
        where = (*at, "name")
        message = f"{application['name']!r} is wrong; write {app_name(args.model_id)!r}, after its model_id"
        yield Problem(dotted(where), message, line_of(lines, where))


def args_model(builder: Callable[..., Any]) -> type[BaseModel] | None:
    """The pydantic model of a builder's first parameter, as Ray Serve finds it."""
    if not inspect.isfunction(builder):
        return None
    parameters = list(inspect.signature(builder).parameters)
    hint = get_type_hints(builder).get(parameters[0]) if parameters else None
    return hint if inspect.isclass(hint) and issubclass(hint, BaseModel) else None


def _unknown_keys(data: Any, model: type[BaseModel], at: Key) -> Iterator[tuple[Key, str]]:
    if not isinstance(data, dict):
        return
    for name, value in data.items():
        key = (*at, name)
        field = model.model_fields.get(name)
        if field is None:
            yield key, f"unknown key; {did_you_mean(str(name), model.model_fields)}"
            continue
        below = _model_in(field.annotation)
        if below is None:
            continue
        for index, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
            yield from _unknown_keys(item, below, key if index is None else (*key, index))


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The one pydantic model inside `X`, `X | None` or `list[X]`; None where a plain dict would do."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    parts = get_args(annotation)
    if any(part is dict or getattr(part, "__origin__", None) is dict for part in parts):
        return None
    models = [model for part in parts if (model := _model_in(part)) is not None]
    return models[0] if len(models) == 1 else None


def line_of(lines: dict[Key, int], key: Key) -> int | None:
    """The line of a key, or of the nearest one around it (a missing key has none)."""
    while key and key not in lines:
        key = key[:-1]
    return lines.get(key)
