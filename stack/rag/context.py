"""What was found, as a model reads it: numbered results between two markers, within a number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stack.rag.queries import texts_of
from stack.schemas.content import (
    ImageContentItem,
    InterleavedContent,
    InterleavedContentItem,
    TextContentItem,
)
from stack.schemas.tools import RAGQueryResult
from stack.vector.store import ScoredChunk

HEADER = "knowledge_search tool found {} chunks:\nBEGIN of knowledge_search tool results.\n"
RESULT = "Result {}:\nDocument_id:{}\nContent: {}\n"
FOOTER = "END of knowledge_search tool results.\n"


@dataclass(frozen=True, slots=True)
class Result:
    """A chunk that is shown. `text` may be less than the chunk's."""

    found: ScoredChunk
    text: str
    images: list[ImageContentItem]


def fitted(found: Sequence[ScoredChunk], tokens: Sequence[int], max_tokens: int) -> list[Result]:
    """The best chunks whose tokens together are at most `max_tokens`; the first one is cut if need be."""
    results: list[Result] = []
    left = max_tokens
    for scored, count in zip(found, tokens, strict=True):
        text = " ".join(texts_of(scored.chunk.content))
        if count > left:
            if results:
                break
            # In proportion: exact enough for a limit that is the context of another model.
            text = text[: len(text) * left // count]
            count = left
        results.append(Result(scored, text, _images(scored.chunk.content)))
        left -= count
    return results


def context_of(results: Sequence[Result]) -> RAGQueryResult:
    """Without results the content is null. The lists in the metadata have one entry for each result."""
    content: list[InterleavedContentItem] = []
    for number, result in enumerate(results, start=1):
        content.append(TextContentItem(text=RESULT.format(number, document_id(result.found), result.text)))
        content += result.images
    if content:
        header, footer = TextContentItem(text=HEADER.format(len(results))), TextContentItem(text=FOOTER)
        content = [header, *content, footer]
    return RAGQueryResult(
        content=content or None,
        metadata={
            "document_ids": [document_id(result.found) for result in results],
            "chunks": [result.text for result in results],
            "scores": [result.found.score for result in results],
            "vector_db_ids": [result.found.vector_db_id for result in results],
        },
    )


def document_id(found: ScoredChunk) -> str:
    """Of a chunk that was inserted without one: empty."""
    return str(found.chunk.metadata.get("document_id", ""))


def _images(content: InterleavedContent) -> list[ImageContentItem]:
    if isinstance(content, str):
        return []
    items: list[InterleavedContentItem] = content if isinstance(content, list) else [content]
    return [item for item in items if isinstance(item, ImageContentItem)]
