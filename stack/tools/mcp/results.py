"""What a tool of an MCP server answers -> a ToolInvocationResult."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

from stack.errors import UpstreamError
from stack.schemas.content import ImageContentItem, ImageSource, InterleavedContentItem, TextContentItem
from stack.schemas.tools import ToolInvocationResult

MAX_TEXT_CHARS = 256 << 10
MAX_ERROR_CHARS = 4_000
TOOL_FAILED = 1  # error_code, where the server says no more than that
IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")


def result_of(result: CallToolResult) -> ToolInvocationResult:
    items = list(_items(result))
    if result.is_error:
        texts = "\n".join(item.text for item in items if isinstance(item, TextContentItem))
        message = texts[:MAX_ERROR_CHARS] or "the tool failed and does not say why"
        return ToolInvocationResult(error_message=message, error_code=TOOL_FAILED)
    if result.structured_content is not None and not any(isinstance(i, TextContentItem) for i in items):
        items.insert(0, TextContentItem(text=_json(result.structured_content)))
    return ToolInvocationResult(content=_fitted(items))


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except ValueError as error:
        raise UpstreamError("the tool answers with a number of thousands of digits") from error


def _items(result: CallToolResult) -> Iterator[InterleavedContentItem]:
    for block in result.content:
        match block:
            case TextContent():
                yield TextContentItem(text=block.text)
            case ImageContent():
                yield _data(block.mime_type, block.data, "image")
            case AudioContent():
                yield _left_out("audio", block.mime_type, block.data)
            case ResourceLink():
                about = " ".join(filter(None, (block.title or block.name, block.description)))
                yield TextContentItem(text=f"{about}: {block.uri}")
            case EmbeddedResource(resource=TextResourceContents() as resource):
                yield TextContentItem(text=resource.text)
            case EmbeddedResource(resource=BlobResourceContents() as resource):
                yield _data(resource.mime_type or "", resource.blob, str(resource.uri))


def _data(mime_type: str, data: str, what: str) -> InterleavedContentItem:
    """Models see images; of other data they are told that it is there."""
    if mime_type in IMAGES:
        return ImageContentItem(image=ImageSource(data=data))
    return _left_out(what, mime_type, data)


def _left_out(what: str, mime_type: str, data: str) -> TextContentItem:
    return TextContentItem(text=f"[{what}: {mime_type or 'data'}, {len(data) * 3 // 4} bytes, not shown]")


def _fitted(items: Sequence[InterleavedContentItem]) -> list[InterleavedContentItem]:
    """All texts together are cut where they are too long for any model."""
    fitted: list[InterleavedContentItem] = []
    left = MAX_TEXT_CHARS
    for item in items:
        if isinstance(item, TextContentItem) and len(item.text) > left:
            cut = len(item.text) - left
            item = TextContentItem(text=f"{item.text[:left]}\n[… {cut} more characters are cut off]")
            left = 0
        elif isinstance(item, TextContentItem):
            left -= len(item.text)
        fitted.append(item)
    return fitted
