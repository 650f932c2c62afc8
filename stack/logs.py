"""Structured logs: one `key=value` line (logfmt) per event, with the request's trace id, without secrets."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from contextvars import ContextVar

trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)
"""The trace that the running code belongs to; set by the middleware."""

_PLAIN = re.compile(r"[\w./:@+%*,-]+\Z")
# A net below the rule that secrets are not logged: tracebacks quote what nobody wrote there.
_SECRETS = re.compile(
    r"""(?P<keep>\b[a-z][a-z0-9+.-]*://[^\s/:@]*:      # the password in a URL
      | \bbearer\s+
      | \b[\w-]*(?:api[_-]?key|secret|password|token)["']?\s*[:=]\s*["']?
      )(?P<drop>[^\s"'@,}]{6,})
      | \b(?:sk|hf|pk)[-_][\w-]{8,}""",
    re.IGNORECASE | re.VERBOSE,
)


def redact(text: str) -> str:
    """The text with everything that looks like a key or a password replaced by asterisks."""
    return _SECRETS.sub(lambda match: f"{match['keep'] or ''}********", text)


class Logfmt(logging.Formatter):
    """`time=… level=info logger=stack.app trace_id=… message="…" …`; a traceback is one quoted value.

    What varies belongs in the message's arguments or in `extra={"fields": {…}}`, not in the format string.
    """

    def format(self, record: logging.LogRecord) -> str:
        # A line is written for each request: no datetime, and no search for secrets in its fields.
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = f"time={clock}.{int(record.msecs):03}Z level={record.levelname.lower()} logger={record.name}"
        if trace := trace_id.get():
            line += f" trace_id={trace}"
        line += f" message={_value(redact(record.getMessage()))}"
        for key, value in getattr(record, "fields", {}).items():
            line += f" {key}={_value(value)}"
        if record.exc_info:
            line += f" traceback={_value(redact(self.formatException(record.exc_info)))}"
        return line


def _value(value: object) -> str:
    text = str(value)
    return text if _PLAIN.match(text) else json.dumps(text, ensure_ascii=False)


def configure_logging(level: str = "INFO") -> None:
    """Send the `stack` loggers to stderr. Loggers of others, Ray's among them, are left alone."""
    logger = logging.getLogger("stack")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Logfmt())
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False
