"""Word documents -> text with markdown's headings, lists and one line for each row of a table."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import docx
from docx.opc.exceptions import OpcError
from docx.oxml.ns import qn

from stack.rag.formats import Text

MAX_UNPACKED_BYTES = 256 << 20
MAX_XML_BYTES = 48 << 20  # as a tree, XML takes about ten times its size
MAX_FILES = 10_000

_P, _TABLE, _ROW, _CELL = qn("w:p"), qn("w:tbl"), qn("w:tr"), qn("w:tc")
_BREAKS = {qn("w:tab"): "\t", qn("w:br"): "\n", qn("w:cr"): "\n", qn("w:noBreakHyphen"): "-"}
_TEXT, _VALUE, _STYLE = qn("w:t"), qn("w:val"), qn("w:pStyle")
# What older versions of Word show instead of the part beside it.
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_HEADING = re.compile(r"heading ([1-9])", re.IGNORECASE)


def read(content: bytes, charset: str | None) -> Text:
    _check_sizes(content)
    try:
        document = docx.Document(io.BytesIO(content))
    except (OpcError, KeyError, ValueError, zipfile.BadZipFile, SyntaxError) as error:
        raise ValueError("it is a damaged docx, which cannot be opened") from error
    styles = {
        style.get(qn("w:styleId")): (style.find(qn("w:name")).get(_VALUE) or "")
        for style in document.styles.element.iter(qn("w:style"))
        if style.find(qn("w:name")) is not None
    }
    blocks = [block for block in _blocks(document.element.body, styles) if block.strip("#- \n\t")]
    title = (document.core_properties.title or "").strip()
    return {"text": "\n\n".join(blocks), "title": title or None}


def _check_sizes(content: bytes) -> None:
    """The sizes that the archive declares, which are as far as it is unpacked."""
    try:
        files = zipfile.ZipFile(io.BytesIO(content)).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise ValueError("it is a damaged docx, which cannot be opened") from None
    unpacked = sum(file.file_size for file in files)
    xml = max((file.file_size for file in files if file.filename.endswith((".xml", ".rels"))), default=0)
    if unpacked > MAX_UNPACKED_BYTES or xml > MAX_XML_BYTES or len(files) > MAX_FILES:
        raise ValueError(f"it is a docx that unpacks to {unpacked >> 20} MiB, which is too much")


def _blocks(parent: Any, styles: dict[str, str]) -> Iterator[str]:
    """Paragraphs and tables in order, also those in content controls and text boxes."""
    for element in parent:
        if element.tag == _P:
            yield _paragraph(element, styles)
            for box in element.iter(qn("w:txbxContent")):
                if not any(ancestor.tag == _FALLBACK for ancestor in box.iterancestors()):
                    yield from _blocks(box, styles)
        elif element.tag == _TABLE:
            yield "\n".join(" | ".join(_cells(row)) for row in element.iter(_ROW))
        elif element.tag != _FALLBACK:
            yield from _blocks(element, styles)


def _cells(row: Any) -> Iterator[str]:
    for cell in row.iterchildren(_CELL):
        yield " ".join(filter(None, (_text(paragraph).strip() for paragraph in cell.iter(_P))))


def _paragraph(paragraph: Any, styles: dict[str, str]) -> str:
    text = _text(paragraph)
    style = next(paragraph.iter(_STYLE), None)
    name = styles.get(style.get(_VALUE), "") if style is not None else ""
    if name.lower() == "title":
        return f"# {text.strip()}"
    if heading := _HEADING.fullmatch(name):
        return f"{'#' * min(int(heading[1]), 6)} {' '.join(text.split())}"
    if name.startswith("List") or next(paragraph.iter(qn("w:numPr")), None) is not None:
        return f"- {text.strip()}"
    return text


def _text(paragraph: Any) -> str:
    """What stands in a paragraph, text boxes anchored in it left out."""
    parts: list[str] = []
    for element in paragraph.iter(_TEXT, *_BREAKS):
        if next(element.iterancestors(_P)) is paragraph and element.getparent().tag != qn("w:tabs"):
            parts.append(element.text or "" if element.tag == _TEXT else _BREAKS[element.tag])
    return "".join(parts)
