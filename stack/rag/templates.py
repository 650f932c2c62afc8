"""Callers' Jinja templates. Runs in a bounded child."""

from __future__ import annotations

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_PROMPT_CHARS = 200_000


def render(template: str, messages: list[str]) -> str:
    """`template` with the variable `messages`. Raises ValueError with what is wrong with it."""
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
    length, parts = 0, []
    try:
        for part in environment.from_string(template).generate(messages=messages):
            length += len(part)
            if length > MAX_PROMPT_CHARS:
                raise ValueError(f"it renders to more than {MAX_PROMPT_CHARS} characters")
            parts.append(part)
    except TemplateError as error:
        raise ValueError(str(error) or type(error).__name__) from error
    except (TypeError, ArithmeticError, LookupError, AttributeError) as error:
        raise ValueError(str(error)) from error
    return "".join(parts)
