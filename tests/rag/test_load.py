from __future__ import annotations

import time

import pytest

from stack.rag.load import url_of
from stack.schemas.common import URL
from stack.schemas.content import TextContentItem
from stack.schemas.tools import RAGDocument


@pytest.mark.parametrize(
    "text",
    [
        "https://a.example/x",
        " files://b/k ",
        "lsfs://k",
        "data:text/plain,a%20b",
        "data:a/b;charset=x;base64,eA==",
    ],
)
def test_a_string_that_is_a_url_is_fetched(text: str) -> None:
    assert url_of(RAGDocument(document_id="d", content=text, metadata={})) == text.strip()
    assert url_of(RAGDocument(document_id="d", content=URL(uri=text), metadata={})) == text
    item = TextContentItem(text=text)
    assert url_of(RAGDocument(document_id="d", content=item, metadata={})) is None


@pytest.mark.parametrize(
    "text", ["see https://a.example/x", "data: all of it, here", "data:text/,x", "data:a/b"]
)
def test_other_strings_are_texts(text: str) -> None:
    assert url_of(RAGDocument(document_id="d", content=text, metadata={})) is None


def test_a_long_string_is_told_from_a_url_in_linear_time() -> None:
    start = time.process_time()
    assert url_of(RAGDocument(document_id="d", content="data:a/" + "a" * 1_000_000, metadata={})) is None
    assert time.process_time() - start < 1
