"""Render a model's chat template in a sandbox that it cannot leave and that ends in time.

Templates come with models and may be anybody's. Jinja's immutable sandbox, the one that transformers uses,
keeps them from running code, but lets a template loop for hours; so each loop and macro here looks at a
clock. Memory is bounded only by the replica's own, which serves no other model.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SECONDS = 2.0
_RAISED = (jinja2.TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError)
_clock = threading.local()


class TemplateFailed(Exception):
    """The template refused its input or is broken; the message is its own."""


class Template:
    """A compiled template. Safe to render in several threads."""

    def __init__(self, source: str) -> None:
        """Raises TemplateFailed."""
        self.source = source
        try:
            self.variables = meta.find_undeclared_variables(_environment.parse(source))
            self._template = _environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateFailed(f"{type(error).__name__}: {error}") from None

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """Raises TemplateFailed."""
        _clock.deadline = time.monotonic() + MAX_SECONDS
        try:
            return self._template.render(messages=messages, **{"add_generation_prompt": True, **variables})
        except _RAISED as error:
            raise TemplateFailed(str(error) or type(error).__name__) from None

    def literal_text(self) -> str:
        """All text that stands in the template, and so is its own and not a caller's."""
        tree = _environment.parse(self.source)
        constants = (node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str))
        return "\0".join([*(node.data for node in tree.find_all(nodes.TemplateData)), *constants])


def check_clock() -> str:
    """Called by the compiled template; see `_Environment`."""
    if time.monotonic() > _clock.deadline:
        raise jinja2.TemplateRuntimeError(f"it takes more than {MAX_SECONDS} s")
    return ""


class _Environment(ImmutableSandboxedEnvironment):
    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        for node in source.find_all((nodes.For, nodes.Macro, nodes.CallBlock, nodes.FilterBlock)):
            tick = nodes.Call(nodes.ImportedName(f"{__name__}.check_clock"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(tick).set_lineno(node.lineno))  # type: ignore[attr-defined]  # all four have one
        return super()._generate(source, *args, **kwargs)


class _Generation(Extension):
    """`{% generation %}` marks what training learns from; here it is only its contents."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


_environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
_environment.filters["tojson"] = _tojson
_environment.globals.update(raise_exception=_raise, strftime_now=_strftime_now)
_environment.globals.pop("lipsum", None)  # writes as much as it is told to
