"""What kind of file a document is: by its bytes where they tell, else as declared, else by its name."""

from __future__ import annotations

import re
from enum import StrEnum
from urllib.parse import unquote, urlsplit

from stack.errors import BadRequest


class Kind(StrEnum):
    TEXT = "text"  # as it is: plain text, JSON, source code
    MARKDOWN = "markdown"
    HTML = "html"
    PDF = "pdf"
    DOCX = "docx"
    CSV = "csv"


DOCX_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
_TYPES = {
    "text/html": Kind.HTML,
    "application/xhtml+xml": Kind.HTML,
    "text/markdown": Kind.MARKDOWN,
    "text/x-markdown": Kind.MARKDOWN,
    "text/csv": Kind.CSV,
    "application/csv": Kind.CSV,
    "text/tab-separated-values": Kind.CSV,
    "application/pdf": Kind.PDF,
    "application/x-pdf": Kind.PDF,
    DOCX_TYPE: Kind.DOCX,
}
_TEXT_TYPES = re.compile(
    r"text/.*|application/(json|jsonl|x-ndjson|ld\+json|xml|yaml|x-yaml|toml|javascript|sql)|.*\+(json|xml)"
)
_SUFFIXES = {
    "md": Kind.MARKDOWN, "markdown": Kind.MARKDOWN, "htm": Kind.HTML, "html": Kind.HTML, "xhtml": Kind.HTML,
    "pdf": Kind.PDF, "docx": Kind.DOCX, "csv": Kind.CSV, "tsv": Kind.CSV,
}  # fmt: skip
_SAYS_NOTHING = frozenset({"", "text/plain", "application/octet-stream", "binary/octet-stream"})
"""What servers and clients write when they do not know."""

_BINARY_KINDS = frozenset({Kind.PDF, Kind.DOCX})
# Atomic, or many comments would take exponential time.
_HTML = re.compile(
    rb"\s*(<\?xml[^>]*>\s*)?(?>(<!--.*?-->\s*)*)<(!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL
)
_RTF = b"{\\rtf"
_REFUSED = {
    b"\x1f\x8b": "a gzip archive: decompress it first",
    b"\xd0\xcf\x11\xe0": "an old Office file: save it as docx or pdf",
    b"\x89PNG": 'an image: insert it as {"type": "image", …}',
    b"\xff\xd8\xff": 'an image: insert it as {"type": "image", …}',
    b"GIF8": 'an image: insert it as {"type": "image", …}',
    _RTF: "an RTF file: save it as docx or pdf",
}


def kind_of(content: bytes, declared: str | None, fetched: str | None = None, url: str = "") -> Kind:
    """The kind of a document's bytes. `declared` is its mime_type, `fetched` its server's content type.

    Raises BadRequest for what no parser here reads, and for an HTML page in the place of a file.
    """
    by_name, media_type = _by_name(declared, fetched, url)
    by_bytes = _sniffed(content, by_name)
    if by_bytes in _BINARY_KINDS:
        assert by_bytes is not None
        return by_bytes
    if by_name in _BINARY_KINDS or (by_name is Kind.CSV and by_bytes is Kind.HTML):
        what = "an HTML page, perhaps its server's error or login page" if by_bytes else "none"
        raise BadRequest(f"it should be a {by_name} file and is {what}")
    if by_name is None:
        raise BadRequest(
            f"type {media_type!r} is not read: give plain text, markdown, html, pdf, docx or csv"
        )
    if by_name is Kind.TEXT and by_bytes is not None:
        return by_bytes
    return by_name


def _sniffed(content: bytes, by_name: Kind | None) -> Kind | None:
    """PDF, DOCX, HTML, or None for some text."""
    head = content[:1024]
    # Some PDFs begin with something else; some texts mention how PDFs begin.
    if head.lstrip().startswith(b"%PDF-") or (by_name is Kind.PDF and b"%PDF-" in head):
        return Kind.PDF
    if head.startswith(b"PK\x03\x04"):
        # A zip archive's names stand in its directory, at its end.
        if b"word/document" in content[-(1 << 20) :]:
            return Kind.DOCX
        raise BadRequest("it is a zip archive that is no docx: give its files, or save it as docx or pdf")
    for magic, what in _REFUSED.items():
        if head.startswith(magic) and (magic == _RTF or not head.isascii()):
            raise BadRequest(f"it is {what}")
    if _HTML.match(head.removeprefix(b"\xef\xbb\xbf")):
        return Kind.HTML
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):  # UTF-16
        return None
    if head.count(b"\0") > len(head) // 4 and not _is_wide_text(head):
        raise BadRequest("it is a binary file of a kind that is not read")
    return None


def _is_wide_text(head: bytes) -> bool:
    """UTF-16 or UTF-32 without a mark: one of two or three of four bytes are zero throughout."""
    return any(set(head[i::2]) == {0} for i in (0, 1))


def _by_name(declared: str | None, fetched: str | None, url: str) -> tuple[Kind | None, str]:
    """By the first media type that says anything, else the URL's suffix; and the type that decided."""
    for media_type in (_bare(declared), _bare(fetched)):
        if media_type not in _SAYS_NOTHING:
            kind = _TYPES.get(media_type)
            if kind is None and _TEXT_TYPES.fullmatch(media_type):
                kind = Kind.TEXT
            return kind, media_type
    suffix = unquote(urlsplit(url).path if "://" in url else "").rpartition(".")[2].lower()
    return _SUFFIXES.get(suffix, Kind.TEXT), ""


def named_kind(media_type: str | None) -> Kind | None:
    """The kind of a media type that names one."""
    return _TYPES.get(_bare(media_type))


def _bare(media_type: str | None) -> str:
    return (media_type or "").partition(";")[0].strip().lower()
