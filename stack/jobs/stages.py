"""The phases of a job as spans, one after the other."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.trace import Span

from stack.tracing import TRACER


class Stages:
    def __init__(self, parent: Context | None, attributes: Mapping[str, str] | None = None) -> None:
        """Below `parent`, each with the attributes; None: nothing is recorded."""
        self._parent, self._attributes = parent, attributes
        self._current: tuple[str, Span] | None = None

    def next(self, name: str | None) -> None:
        """What comes now is that stage, if it is not already; None: none that is known here."""
        if self._current is not None and self._current[0] == name:
            return
        current, self._current = self._current, None
        if current is not None:
            current[1].end()
        if name is not None and self._parent is not None:
            span = TRACER.start_span(f"stage {name}", self._parent, attributes=self._attributes)
            self._current = name, span
