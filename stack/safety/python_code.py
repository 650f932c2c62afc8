"""Python code in texts, scanned by bandit in a child process.

Code is a text that parses as a whole, or a fenced block in it that does, whatever its language is said to
be. What does not parse cannot be run as Python either.
"""

from __future__ import annotations

import ast
import logging
import re
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

_HEAD = 2_000  # characters
MAX_TEXT = 200  # characters of an issue's text
_RANKS = {"LOW": 0, "MEDIUM": 1, "HIGH": 2}
_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_PROMPT = re.compile(r"(>>>|\.\.\.)( |$)")
_MAGIC = re.compile(r"(\s*)[!%]")


def scan(texts: Sequence[str], min_severity: str, min_confidence: str) -> list[dict[str, Any]]:
    """Issues, the most severe first. Raises ValueError for code that bandit cannot look through."""
    issues = [
        issue
        for number, text in enumerate(texts)
        for line, code in _snippets(text)
        for issue in _issues(code, number, line, min_severity.upper(), min_confidence.upper())
    ]
    return sorted(issues, key=lambda issue: -_RANKS[issue["severity"].upper()])


def _snippets(text: str) -> Iterator[tuple[int, str]]:
    """Python code, and on which line of the text, from 1, it begins."""
    if (code := _python(text)) is not None:
        yield 1, code
        return
    for line, block in _blocks(text):
        if (code := _python(block)) is not None:
            yield line, code


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    """What stands between fences; the last one may be open."""
    fence, start, lines = "", 0, list[str]()
    for number, line in enumerate(text.splitlines(), start=1):
        found = _FENCE.match(line)
        if not fence and found:
            fence, start, lines = found[1], number + 1, []
        elif fence and found and found[1].startswith(fence) and line.strip() == found[1]:
            yield start, "\n".join(lines)
            fence = ""
        elif fence:
            lines.append(line)
    if fence:
        yield start, "\n".join(lines)


def _python(text: str) -> str | None:
    """The text as a module, if it is one, also when it is indented or from a console or notebook."""
    if not text.strip():
        return None
    lines = textwrap.dedent(text).splitlines()
    if any(line.startswith(">>> ") for line in lines):
        lines = [_PROMPT.sub("", line) if _PROMPT.match(line) else f"# {line}" for line in lines]
    code = "\n".join(_MAGIC.sub(r"\1pass  # ", line) if line.lstrip()[:1] in "!%" else line for line in lines)
    try:
        ast.parse(code)
    except (SyntaxError, ValueError):
        return None
    except (MemoryError, RecursionError):
        if _fails_early(code):
            return None
        raise
    return code


def _fails_early(code: str) -> bool:
    """Whether the beginning shows that it is no code: Python's parser breaks down at long lines of prose."""
    head = code[:_HEAD]
    head = head[: max(head.rfind(" "), head.rfind("\n"), 0)]
    lines = head.split("\n")
    try:
        ast.parse(head)
    except SyntaxError as error:  # at the last token that was read, so what follows makes no difference
        reached = (error.end_lineno or 0, error.end_offset or 0)
        return error.msg == "invalid syntax" and reached < (len(lines), len(lines[-1]))
    except (MemoryError, RecursionError):
        pass
    return False


def _issues(code: str, text: int, line: int, severity: str, confidence: str) -> list[dict[str, Any]]:
    from bandit.core.manager import BanditManager  # type: ignore[import-untyped]

    # Comments in what is scanned do not switch off its checks.
    manager = BanditManager(_config(), "file", ignore_nosec=True)
    failures = _Failures()
    with tempfile.NamedTemporaryFile("w", suffix=".py", encoding="utf-8") as file, failures:
        file.write(code)
        file.flush()
        manager.discover_files([file.name])
        manager.run_tests()
    if manager.get_skipped() or failures.seen or not manager.files_list:
        raise ValueError("the messages have Python code that cannot be scanned: it is nested too deep or odd")
    return [
        {
            "test_id": issue.test_id,
            "severity": issue.severity.lower(),
            "confidence": issue.confidence.lower(),
            "text_index": text,
            "line": line + issue.lineno - 1,
            "text": issue.text[:MAX_TEXT],
        }
        for issue in manager.get_issue_list(severity, confidence)
    ]


@lru_cache(maxsize=1)
def _config() -> Any:
    from bandit.core.config import BanditConfig  # type: ignore[import-untyped]

    return BanditConfig()


class _Failures(logging.Handler):
    """Notes that one of bandit's checks broke down, of which it only writes a line in its log."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen = False

    def emit(self, record: logging.LogRecord) -> None:
        self.seen = True

    def __enter__(self) -> None:
        logging.getLogger("bandit").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("bandit").removeHandler(self)
