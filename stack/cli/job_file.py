"""The YAML file of a job: its kind, and the fields of the request that submits it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from pydantic import BaseModel, ValidationError

from stack.cli.config import line_of, parse, parse_text
from stack.cli.problems import CliError, Key, Problem, did_you_mean, dotted, explain
from stack.schemas.post_training import PreferenceOptimizeRequest, SupervisedFineTuneRequest

KINDS: dict[str, tuple[str, type[BaseModel]]] = {
    "supervised-fine-tune": ("/v1/post-training/supervised-fine-tune", SupervisedFineTuneRequest),
    "preference-optimize": ("/v1/post-training/preference-optimize", PreferenceOptimizeRequest),
}
"""A job's kind -> where it is submitted, and as what."""

DEFAULTS: dict[str, Any] = {
    "hyperparam_search_config": {},
    "logger_config": {},
    "training_config": {
        "n_epochs": 1,
        "max_steps_per_epoch": 0,
        "gradient_accumulation_steps": 1,
        "max_validation_steps": 0,
        "data_config": {"shuffle": True, "data_format": "dialog"},
        "optimizer_config": {"optimizer_type": "adamw", "weight_decay": 0.0, "num_warmup_steps": 0},
    },
}
"""What a file may leave out, though a request may not."""

_TAGS = ("LoRA", "QAT")  # pydantic names the option of a union between two keys


@dataclass(frozen=True, slots=True)
class Submission:
    path: str
    body: dict[str, Any]


def read(file: Path, changes: Iterable[str]) -> Submission:
    """`-` is stdin; `changes` are KEY=VALUE. Raises CliError, which names each bad line."""
    piped = str(file) == "-"
    if not piped and not file.is_file():
        raise CliError(f"there is no file {file}; see: stack jobs submit --help")
    file = Path("stdin") if piped else file
    data, lines = parse_text(sys.stdin.read(), file) if piped else parse(file)
    for change in changes:
        _set(data, change)
    if "kind" not in data:
        raise CliError(f"{file}: kind is missing; write kind: {' or '.join(KINDS)}")
    kind = str(data.pop("kind"))
    if kind not in KINDS:
        raise CliError(f"{file}: there are no jobs of kind {kind!r}; {did_you_mean(kind, KINDS)}")
    path, model = KINDS[kind]
    filled = _filled(data, DEFAULTS | {"job_uuid": _name("job" if piped else file.stem)})
    try:
        body: dict[str, Any] = model.model_validate(filled).model_dump(mode="json")
    except ValidationError as error:
        listed = "\n".join(f"  {problem}" for problem in _problems(error, model, lines))
        raise CliError(f"{file} cannot be submitted:\n{listed}") from None
    return Submission(path, body)


def _name(stem: str) -> str:
    """A job's id that nobody has."""
    return f"{re.sub('[^A-Za-z0-9]+', '-', stem).strip('-')[:40] or 'job'}-{uuid4().hex[:8]}"


def _set(data: dict[str, Any], change: str) -> None:
    """Put in `training_config.n_epochs=3`; the value is YAML."""
    name, equals, text = change.partition("=")
    *above, last = name.split(".")
    if not equals or not all((*above, last)):
        raise CliError(f"--set {change}: write KEY=VALUE, e.g. training_config.n_epochs=3")
    for part in above:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise CliError(f"--set {change}: {part} is a value and has no keys")
    try:
        data[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise CliError(f"--set {change}: {text!r} is no YAML value") from None


def _filled(data: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`data`, with what it leaves out from `defaults`."""
    filled = deepcopy(dict(defaults)) | dict(data)
    for name, value in data.items():
        if isinstance(value, Mapping) and isinstance(defaults.get(name), Mapping):
            filled[name] = _filled(value, defaults[name])
    return filled


def _problems(error: ValidationError, model: type[BaseModel], lines: dict[Key, int]) -> list[Problem]:
    found = []
    for place, message in explain(error, model):
        key = tuple(part for part in place if part not in _TAGS)
        found.append(Problem(dotted(key), message, line_of(lines, key)))
    return found
