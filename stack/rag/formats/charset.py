"""Bytes -> characters, whatever their sender says of them."""

from __future__ import annotations

import codecs
import re

SAMPLE_BYTES = 64 << 10

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_META = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)


def decode(content: bytes, declared: str | None, is_html: bool = False) -> str:
    """By the byte order mark; as UTF-8 where that is valid; as declared; as detected. Never fails.

    UTF-8 goes before what is declared: no other charset's text passes for it by chance, and servers
    declare ISO-8859-1 for everything.
    """
    for mark, utf in _BOMS:
        if content.startswith(mark):
            return content.decode(utf, "replace")
    if b"\0" not in content[:1024]:  # UTF-16 of ASCII is valid UTF-8
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            pass
    meta = _META.search(content[:4096]) if is_html else None
    for name in (declared, meta[1].decode() if meta else None):
        if name and (charset := _python_charset(name)):
            try:
                return content.decode(charset)
            except UnicodeError:
                continue
    return content.decode(_detected(content), "replace")


def _python_charset(name: str) -> str | None:
    """Python's name of a text charset. As on the web, latin-1 and ASCII mean Windows' superset."""
    try:
        info = codecs.lookup(name.strip("\"' "))
    except (LookupError, ValueError):
        return None
    # "rot13", "zip" and "idna" are codecs and no charsets.
    if not getattr(info, "_is_text_encoding", True) or info.name in ("idna", "punycode", "undefined"):
        return None
    if "escape" in info.name:
        return None
    return "cp1252" if info.name in ("iso8859-1", "ascii") else info.name


def _detected(content: bytes) -> str:
    from charset_normalizer import from_bytes

    sample = content[:SAMPLE_BYTES]
    # Most of it may be UTF-8 with a few damaged bytes, which detection would give up on.
    broken = sample.decode("utf-8", "replace").count("\ufffd")
    if b"\0" not in sample and broken * 50 < sum(byte >= 0x80 for byte in sample):
        return "utf-8"
    best = from_bytes(sample).best()
    return best.encoding if best is not None else "cp1252"
