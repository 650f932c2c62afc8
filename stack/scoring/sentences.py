"""Where English sentences end, by the rules (`split_into_sentences`) that IFEval has beside NLTK's model."""

from __future__ import annotations

import re

_KEPT = "\ue000"  # a private character: a period that ends no sentence
_END = "\ue001"
_BEGINS = r"(?:Mr|Mrs|Ms|Dr|Prof|He|She|It|They|Their|Our|We|But|However|That|This|Wherever)\b"


def sentences(text: str) -> list[str]:
    text = text.replace("\n", " ").replace(_KEPT, "").replace(_END, "")
    text = re.sub(r"(?<=\d)\.(?=\d)|\.(?=(?:com|net|org|io|gov|edu|me)\b)", _KEPT, text)
    text = re.sub(r"\.{2,}", lambda dots: _KEPT * len(dots[0]) + _END, text)
    text = re.sub(rf"((?:[A-Z]\.){{2,3}}) (?={_BEGINS})", rf"\1{_END} ", text)
    text = re.sub(r"\b(?:Mr|St|Mrs|Ms|Dr)\.|\bPh\.D\.?", _kept, text)
    text = re.sub(rf"\b(?:Inc|Ltd|Jr|Sr|Co)\.(?! {_BEGINS})", _kept, text)
    text = re.sub(r"\b[A-Za-z]\.(?:[A-Za-z]\.)*(?! ?\ue001)", _kept, text)
    text = re.sub(r"([.?!]+)([”\"])", r"\2\1", text)
    text = re.sub(r"[.?!]+", lambda end: end[0] + _END, text).replace(_KEPT, ".")
    return [part for part in map(str.strip, text.split(_END)) if part]


def _kept(match: re.Match[str]) -> str:
    return match[0].replace(".", _KEPT)
