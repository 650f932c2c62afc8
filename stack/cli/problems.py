"""What a user can mend: bad lines in YAML, bad settings, a server that does not answer."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

Key = tuple[str | int, ...]


class CliError(Exception):
    """Shown to the user without a traceback; the command exits with 1."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One wrong value: where it is, what it is, and what to write instead."""

    key: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{self.key}: {self.message}" if self.key else f"{where}{self.message}"


def report(error: Exception) -> None:
    """Write an error to stderr, its first line marked."""
    typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(str(error), err=True)


def dotted(key: Sequence[str | int]) -> str:
    """`applications[2].args.num_cpus`."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown word: the closest known one, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6) or [
        n for n in names if n.startswith(word)
    ]
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}"


def explain(error: ValidationError, model: type[BaseModel]) -> list[tuple[Key, str]]:
    """Each of pydantic's complaints as (key, what is wrong and what to write)."""
    return [
        (details["loc"], _advice(details, _model_at(model, details["loc"][:-1])))
        for details in error.errors(include_url=False)
    ]


def _model_at(model: type[BaseModel], place: Key) -> type[BaseModel]:
    """The model that a place within `model` has: pydantic also names the option of a union there."""
    options = [model]
    for part in place:
        fields = [option.model_fields[part] for option in options if part in option.model_fields]
        found = [below for field in fields for below in models_in(field.annotation)]
        options = found or [option for option in options if _tag(option) == part] or options
    return options[0]


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models that a field's type mentions."""
    from pydantic import BaseModel

    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    parts = get_args(getattr(annotation, "__value__", annotation))
    return [model for part in parts for model in models_in(part)]


def _tag(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("type")
    return None if field is None else field.default


def _advice(details: ErrorDetails, model: type[BaseModel]) -> str:
    kind, message, value = details["type"], details["msg"], details["input"]
    name = str(details["loc"][-1]) if details["loc"] else ""
    if kind == "extra_forbidden":
        return f"unknown key; {did_you_mean(name, model.model_fields)}"
    if kind == "missing":
        return f"missing; add it{_description(model, name)}"
    if kind == "literal_error":
        allowed = message.removeprefix("Input should be ")
        return f"{value!r} is not allowed; write {allowed}"
    if message.startswith("Input should be "):
        wanted = message.removeprefix("Input should be ").split(", unable to parse")[0]
        return f"{_short(value)} is wrong; write {wanted}{_description(model, name)}"
    message = message.removeprefix("Value error, ")
    return f"{_short(value)} is wrong: {message}" if details["loc"] else message


def _description(model: type[BaseModel], name: str) -> str:
    field = model.model_fields.get(name)
    return f" ({field.description.rstrip('.')})" if field is not None and field.description else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
