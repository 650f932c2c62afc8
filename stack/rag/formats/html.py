"""HTML -> text with markdown's headings, lists and tables; without navigation, scripts and hidden parts."""

from __future__ import annotations

import re
from collections.abc import Iterator

from selectolax.lexbor import LexborHTMLParser, LexborNode

from stack.rag.formats import Text
from stack.rag.formats.charset import decode

_SKIPPED = {
    "script", "style", "noscript", "template", "svg", "math", "nav", "iframe", "object", "canvas", "button",
    "select", "textarea", "dialog", "head",
}  # fmt: skip
_PARAGRAPHS = {
    "p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "pre", "blockquote", "section",
    "article", "main", "aside", "figure", "hr",
}  # fmt: skip
_LINES = {
    "div", "li", "tr", "br", "dt", "dd", "caption", "figcaption", "header", "footer", "address", "form",
    "fieldset", "option",
}  # fmt: skip
_BEFORE = {"li": "- ", **{f"h{level}": "#" * level + " " for level in range(1, 7)}}
_SPACES = re.compile(r"\s+")
_MAIN_SHARE = 0.3  # of the page's text, which <main> must have to stand for the page


def read(content: bytes, charset: str | None) -> Text:
    document = LexborHTMLParser(decode(content, charset, is_html=True))
    body = document.body or document.root
    if body is None:
        return {"text": "", "title": None}
    text = _written(body)
    main = _main(document)
    if main is not None and len(inner := _written(main)) > _MAIN_SHARE * len(text):
        text = inner
    title = document.css_first("title")
    return {"text": text, "title": (_SPACES.sub(" ", title.text()).strip() or None) if title else None}


def _main(document: LexborHTMLParser) -> LexborNode | None:
    found = document.css("main, [role=main]") or document.css("article")
    return found[0] if len(found) == 1 else None


def _written(root: LexborNode) -> str:
    writer = _Writer()
    for node, enters in _walk(root):
        writer.enter(node) if enters else writer.leave(node)
    return "".join(writer.parts).strip()


def _walk(root: LexborNode) -> Iterator[tuple[LexborNode, bool]]:
    """Every node that is shown, when it begins and when it ends; without recursion, as pages may be deep."""
    stack = [(root, True)]
    while stack:
        node, enters = stack.pop()
        if enters and (_is_skipped(node) and node.mem_id != root.mem_id):
            continue
        yield node, enters
        if enters:
            stack.append((node, False))
            child = node.last_child
            while child is not None:
                stack.append((child, True))
                child = child.prev


def _is_skipped(node: LexborNode) -> bool:
    tag = node.tag
    if tag == "-text":
        return False
    if tag is None or tag.startswith("-") or tag in _SKIPPED:
        return True  # a comment, too
    if tag == "footer":
        return node.parent is not None and node.parent.tag == "body"
    attributes = node.attributes
    return "hidden" in attributes or "headerlink" in (attributes.get("class") or "")


class _Writer:
    """Text, with as many line ends between two pieces as the elements between them ask for."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._line_ends = 0  # owed before the next text
        self._before = ""  # a heading's or list item's mark, owed as well
        self._space = False
        self._pre = 0

    def enter(self, node: LexborNode) -> None:
        tag = node.tag or ""
        if tag == "-text":
            self._write(node.text_content or "")
        elif tag == "img" and (alt := node.attributes.get("alt")):
            self._write(alt)
        elif tag == "pre":
            self._pre += 1
        elif tag in ("td", "th") and self.parts and not self._line_ends and not self._before:
            self._write_raw(" | ")
        self._break(tag)
        if tag in _BEFORE:
            self._before = _BEFORE[tag]

    def leave(self, node: LexborNode) -> None:
        tag = node.tag or ""
        self._pre -= tag == "pre"
        if tag in _BEFORE:
            self._before = ""
        if tag != "br":
            self._break(tag)

    def _break(self, tag: str) -> None:
        ends = 2 if tag in _PARAGRAPHS else 1 if tag in _LINES else 0
        self._line_ends = max(self._line_ends, ends)

    def _write(self, text: str) -> None:
        if self._pre:
            self._write_raw(text)
            return
        words = _SPACES.sub(" ", text)
        if not words.strip():
            self._space = self._space or bool(words)
            return
        self._space = self._space or words[0] == " "
        self._write_raw(words.strip(), self._space)
        self._space = words[-1] == " "

    def _write_raw(self, text: str, space: bool = False) -> None:
        if self.parts and self._line_ends:
            self.parts.append("\n" * self._line_ends)
        elif self.parts and space:
            self.parts.append(" ")
        self.parts += (self._before, text)
        self._line_ends, self._before, self._space = 0, "", False
