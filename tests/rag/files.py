"""Small real files of each kind, made here."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Sequence

import docx


def pdf(pages: Sequence[Sequence[str]], title: str = "", outline: Sequence[tuple[str, int]] = ()) -> bytes:
    """Lines of ASCII text on each page; `outline` has bookmarks and the pages that they lead to."""
    objects: list[bytes] = [b"", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    objects.append(b"<< /Title (%s) >>" % title.encode())
    kids = []
    for lines in pages:
        shown = b" ".join(b"(%s) Tj 0 -14 Td" % line.encode() for line in lines)
        stream = b"BT /F1 11 Tf 50 780 Td %s ET" % shown
        kids.append(len(objects) + 1)
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R >> >> >>" % (len(objects) + 2)
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
    first = len(objects) + 2  # after the outline's root
    root = b""
    if outline:
        root = b" /Outlines %d 0 R" % (first - 1)
        last = first + len(outline) - 1
        objects.append(b"<< /First %d 0 R /Last %d 0 R /Count %d >>" % (first, last, len(outline)))
        for i, (text, page) in enumerate(outline):
            following = b" /Next %d 0 R" % (first + i + 1) if i + 1 < len(outline) else b""
            objects.append(
                b"<< /Title (%s) /Parent %d 0 R /Dest [%d 0 R /Fit]%s >>"
                % (text.encode(), first - 1, kids[page], following)
            )
    objects[0] = b"<< /Type /Catalog /Pages 2 0 R%s >>" % root
    references = b" ".join(b"%d 0 R" % kid for kid in kids)
    objects[1] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(kids), references)
    return _numbered(objects)


def _numbered(objects: Sequence[bytes]) -> bytes:
    out, offsets = io.BytesIO(b"%PDF-1.4\n"), []
    out.seek(0, io.SEEK_END)
    for number, content in enumerate(objects, start=1):
        offsets.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, content))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.writelines(b"%010d 00000 n \n" % offset for offset in offsets)
    out.write(b"trailer << /Size %d /Root 1 0 R /Info 4 0 R >>\n" % (len(objects) + 1))
    out.write(b"startxref\n%d\n%%%%EOF\n" % start)
    return out.getvalue()


def word() -> bytes:
    document = docx.Document()
    document.core_properties.title = "A report"
    document.add_heading("First part", 1)
    document.add_paragraph("Grüße aus 東京. It has two sentences.")
    document.add_heading("Detail", 2)
    document.add_paragraph("one", style="List Bullet")
    table = document.add_table(2, 2)
    for cell, text in zip(table._cells, ["name", "size", "apple", "3"], strict=True):
        cell.text = text
    document.add_paragraph("The end.")
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def word_bomb(unpacked_mib: int) -> bytes:
    """A docx of a few MiB whose text unpacks to so much."""
    source, out = zipfile.ZipFile(io.BytesIO(word())), io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            content = source.read(name)
            if name != "word/document.xml":
                target.writestr(name, content)
                continue
            head, _, tail = content.partition(b"The end.")
            with target.open(name, "w", force_zip64=True) as file:
                file.write(head)
                for _ in range(unpacked_mib):
                    file.write(b"a" * (1 << 20))
                file.write(tail)
    return out.getvalue()


def data_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


HTML = """<!doctype html><html><head><title> A  page </title><style>p{}</style>
<script>if (1<2) {}</script></head>
<body><nav><a href="/">Home</a></nav><main><h1>Cats</h1><p>Hello <b>wor</b>ld,<br>second
line &amp; <a href="http://example.org">a link</a>.</p><h2>Food</h2><ul><li>mice<li>fish</ul>
<table><tr><th>k</th><th>v</th></tr><tr><td>a</td><td>1</td></tr></table><pre>x = 1
  y = 2</pre><p hidden>secret</p><p>Gr&uuml;&szlig;e</p></main><footer>Copyright</footer></body></html>"""

HTML_TEXT = """# Cats

Hello world,
second line & a link.

## Food

- mice
- fish

k | v
a | 1

x = 1
  y = 2

Grüße"""
