"""Bytes -> text. What is not plain UTF-8 is read in a child process with bounded time and memory."""

from __future__ import annotations

import asyncio
import base64
import re
from dataclasses import dataclass

from stack.bounded import BoundedChild, Exceeded, Limits, Refused
from stack.errors import BadRequest
from stack.rag.kinds import Kind, kind_of

MAX_TEXT_CHARS = 10_000_000
LIMITS = Limits(cpu_s=15, wall_s=90, memory_bytes=1 << 30)
CHILDREN = 2
"""Documents that one process reads at a time: one that takes all its time does not hold up the others."""

_HEADING = re.compile(r"^#{1,6}[ \t]+(\S[^\n]{0,500})", re.MULTILINE)
_UNWANTED = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ud800-\udfff\ufeff]")


@dataclass(frozen=True, slots=True)
class Source:
    """A document's bytes, and what is said of them."""

    content: bytes
    declared: str | None = None  # the document's mime_type
    fetched: str | None = None  # its server's content type
    charset: str | None = None
    url: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """`text` has headings as in markdown, `\\n` as line ends, and no control characters."""

    text: str
    title: str | None


class Parser:
    """Reads documents, a few at a time."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._limits = limits
        self._idle: asyncio.Queue[BoundedChild] = asyncio.Queue()
        self._children = [BoundedChild(limits, ["stack.rag.formats"]) for _ in range(CHILDREN)]
        for child in self._children:
            self._idle.put_nowait(child)

    async def parse(self, source: Source) -> Text:
        """Raises BadRequest that says what is wrong with the document; the caller names it."""
        kind = kind_of(source.content, source.declared, source.fetched, source.url)
        if kind in (Kind.TEXT, Kind.MARKDOWN):
            try:
                return await asyncio.to_thread(_plain, source.content.decode("utf-8-sig"), kind)
            except UnicodeDecodeError:
                pass
        format_name = "text" if kind is Kind.MARKDOWN else kind.value
        found = await self._read(format_name, source)
        return await asyncio.to_thread(_read_text, found["text"], found["title"], kind)

    async def _read(self, format_name: str, source: Source) -> dict[str, str | None]:
        child = await self._idle.get()
        try:
            # Shielded: a cancelled request must not hand on a child that is still at work.
            work = asyncio.ensure_future(asyncio.to_thread(_call, child, format_name, source))
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            raise
        except Exceeded as error:
            raise BadRequest(_reason(error.limit, self._limits)) from error
        except Refused as error:
            raise BadRequest(str(error)) from error
        except RuntimeError as error:  # an error that the parsing library has no name for
            raise BadRequest("it is damaged, and cannot be read") from error
        finally:
            self._idle.put_nowait(child)

    def close(self) -> None:
        for child in self._children:
            child.close()


def _call(child: BoundedChild, format_name: str, source: Source) -> dict[str, str | None]:
    content = base64.b64encode(source.content).decode()
    found: dict[str, str | None] = child.call(
        "stack.rag.formats:read", format_name, content, source.charset, MAX_TEXT_CHARS
    )
    return found


def _reason(limit: str, limits: Limits) -> str:
    if limit == "time":
        return f"reading it takes more than {limits.cpu_s:g} s"
    if limit == "memory":
        return f"reading it takes more than {limits.memory_bytes >> 20} MiB of memory"
    return "it is nested too deep" if limit == "stack" else "its parser broke down"


def _plain(text: str, kind: Kind) -> Text:
    if len(text) > MAX_TEXT_CHARS:
        raise BadRequest(f"it has more than {MAX_TEXT_CHARS} characters of text: split it")
    text = _clean(text)
    return Text(text, _first_heading(text) if kind is Kind.MARKDOWN else None)


def _read_text(text: str | None, title: str | None, kind: Kind) -> Text:
    text = _clean(text)
    return Text(text, _one_line(title) or (None if kind is Kind.TEXT else _first_heading(text)))


def _clean(text: str | None) -> str:
    text = (text or "").replace("\r\n", "\n").replace("\r", "\n").replace("\x0c", "\n")
    return _UNWANTED.sub("", text)


def _first_heading(text: str) -> str | None:
    found = _HEADING.search(text)
    return _one_line(found[1].rstrip(" \t#")) if found else None


def _one_line(title: str | None) -> str | None:
    return " ".join((title or "").split())[:500] or None
