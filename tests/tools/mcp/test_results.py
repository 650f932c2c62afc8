from __future__ import annotations

from typing import Any

import pytest
from mcp_types import BlobResourceContents, CallToolResult, EmbeddedResource, ImageContent, TextContent

from stack.errors import BadRequest
from stack.schemas.content import ImageContentItem, TextContentItem
from stack.tools.mcp.headers import headers_for
from stack.tools.mcp.results import MAX_TEXT_CHARS, result_of
from tests.tools.mcp.conftest import Farm
from tests.tools.mcp.server import PNG

URL = "https://x.org/mcp"


def text(value: str) -> TextContent:
    return TextContent(type="text", text=value)


def shown(**fields: Any) -> list[Any]:
    content = result_of(CallToolResult(**fields)).content
    assert isinstance(content, list)
    return content


@pytest.mark.parametrize("kind", ["newest"])
async def test_every_kind_of_content(farm: Farm) -> None:
    content = result_of(await farm.call("mixed")).content
    assert isinstance(content, list)
    image = content[1]
    assert isinstance(image, ImageContentItem)
    assert image.image.data == PNG
    assert [item.text for item in content if isinstance(item, TextContentItem)] == [
        "a picture:",
        "[audio: audio/wav, 28 bytes, not shown]".replace("28", str(len(PNG) * 3 // 4)),
        "barn: https://example.org/barn",
        "of a file",
    ]


def test_structured_content_is_told_when_there_is_no_text() -> None:
    assert shown(content=[], structured_content={"a": "ä"})[0].text == '{"a": "ä"}'
    assert [item.text for item in shown(content=[text("x")], structured_content={"a": 1})] == ["x"]
    assert shown(content=[]) == []


def test_errors() -> None:
    result = result_of(CallToolResult(content=[text("a"), text("b")], is_error=True))
    assert (result.content, result.error_message, result.error_code) == (None, "a\nb", 1)
    result = result_of(CallToolResult(content=[], is_error=True))
    assert "does not say why" in str(result.error_message)


def test_long_texts_are_cut_together() -> None:
    items = shown(content=[text("a" * 10), text("b" * MAX_TEXT_CHARS), text("c")])
    assert items[0].text == "a" * 10
    assert items[1].text.endswith("b\n[… 10 more characters are cut off]")
    assert items[2].text == "\n[… 1 more characters are cut off]"


def test_data_is_an_image_or_a_note() -> None:
    def resource(mime_type: str | None) -> EmbeddedResource:
        contents = BlobResourceContents(uri="file:///x", blob=PNG, mime_type=mime_type)
        return EmbeddedResource(type="resource", resource=contents)

    items = shown(
        content=[
            resource("image/png"),
            resource(None),
            ImageContent(type="image", data=PNG, mime_type="image/tiff"),
        ]
    )
    assert isinstance(items[0], ImageContentItem)
    assert items[1].text.startswith("[file:///x: data, ")
    assert items[2].text.startswith("[image: image/tiff, ")


@pytest.mark.parametrize(
    ("given", "headers"),
    [
        ({URL: {"Authorization": "Bearer x"}}, {"authorization": "Bearer x"}),
        ({URL: ["X-B: 2", "X-A: a:b"]}, {"x-a": "a:b", "x-b": "2"}),
        ({f"{URL}/": {"A": "1"}}, {"a": "1"}),
        ({"https://other.org/mcp": {"A": "1"}}, {}),
        (None, {}),
    ],
)
def test_headers_of_an_endpoint(given: Any, headers: dict[str, str]) -> None:
    assert headers_for(URL, {"mcp_headers": given} if given else {}) == headers


@pytest.mark.parametrize(
    "given",
    [
        [],
        {URL: "Bearer x"},
        {URL: ["Bearer"]},
        {URL: {"A": 1}},
        {URL: {"A": "x\r\nHost: y"}},
        {URL: {"A b": "x"}},
        {URL: {"Host": "x"}},
        {URL: {"Mcp-Session-Id": "x"}},
        {URL: {"A": "x" * 20_000}},
    ],
)
def test_bad_headers(given: Any) -> None:
    with pytest.raises(BadRequest, match="mcp_headers") as raised:
        headers_for(URL, {"mcp_headers": given})
    assert "Bearer x" not in str(raised.value)
