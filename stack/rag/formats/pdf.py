"""PDF -> text by PDFium. Lines that the document's outline names are headings."""

from __future__ import annotations

import re
from collections import defaultdict

import pypdfium2

from stack.rag.formats import Text

MAX_PAGES = 5000
MAX_OUTLINE = 10_000

_HYPHEN = re.compile("[\x02\ufffe]\r?\n?")  # how PDFium marks a hyphen at the end of a line
_SPACES = re.compile(r"\s+")
_Outline = dict[int, dict[str, int]]
"""Page -> a heading's text in `_key` form -> its level from 1."""


def read(content: bytes, charset: str | None) -> Text:
    try:
        document = pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise ValueError("it is a PDF with a password: remove it first") from None
        raise ValueError("it is a damaged PDF, which cannot be opened") from None
    if len(document) > MAX_PAGES:
        raise ValueError(f"it has {len(document)} pages, at most {MAX_PAGES} are read: split it")
    outline = _outline(document)
    pages = [_page(document, number, outline.get(number, {})) for number in range(len(document))]
    text = "\n\n".join(page for page in pages if page)
    if not text:
        raise ValueError("it is a PDF without text: scanned pages need OCR, which this server does not have")
    return {"text": text, "title": document.get_metadata_value("Title").strip() or None}


def _outline(document: pypdfium2.PdfDocument) -> _Outline:
    found: _Outline = defaultdict(dict)
    for count, bookmark in enumerate(document.get_toc(max_depth=6)):
        destination = bookmark.get_dest()
        if count == MAX_OUTLINE:
            break
        page = destination.get_index() if destination else None
        if page is not None:
            found[page].setdefault(_key(bookmark.get_title()), bookmark.level + 1)
    return found


def _page(document: pypdfium2.PdfDocument, number: int, headings: dict[str, int]) -> str:
    try:
        page = document[number]
        text_page = page.get_textpage()
    except pypdfium2.PdfiumError:
        return ""  # a damaged page; the others may be whole
    text = _HYPHEN.sub("", text_page.get_text_bounded()).replace("\r\n", "\n").replace("\r", "\n")
    text_page.close()
    page.close()
    if headings:
        text = "\n".join(_marked(line, headings) for line in text.split("\n"))
    return text.strip()


def _marked(line: str, headings: dict[str, int]) -> str:
    level = headings.get(_key(line)) if line.strip() else None
    return f"\n{'#' * min(level, 6)} {line.strip()}\n" if level else line


def _key(text: str) -> str:
    return _SPACES.sub(" ", text).strip().casefold()
