"""What people, tools and models say: text and images, tool calls, and the pieces of a streamed answer."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator
from typing_extensions import TypeAliasType

from stack.schemas.common import URL, Schema

Base64 = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]


class ImageSource(Schema):
    """An image: its URL, or its file's bytes in base64."""

    url: URL | None = Field(None, description="http(s) URL, or a data URL: data:image/{type};base64,{data}")
    data: Base64 | None = Field(None, description="The image file")

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if self.url is None and self.data is None:
            raise ValueError('an image needs "url" or "data" (base64)')
        return self


class ImageContentItem(Schema):
    type: Literal["image"] = "image"
    image: ImageSource


class TextContentItem(Schema):
    type: Literal["text"] = "text"
    text: str


InterleavedContentItem = TypeAliasType(
    "InterleavedContentItem", Annotated[ImageContentItem | TextContentItem, Field(discriminator="type")]
)


def _kind(content: Any) -> str | None:
    """Which branch of InterleavedContent it is, so that errors speak of that branch only."""
    if isinstance(content, str):
        return "text"
    if isinstance(content, list):
        return "items"
    return "item" if isinstance(content, dict | ImageContentItem | TextContentItem) else None


InterleavedContent = TypeAliasType(
    "InterleavedContent",
    Annotated[
        Annotated[str, Tag("text")]
        | Annotated[InterleavedContentItem, Tag("item")]
        | Annotated[list[InterleavedContentItem], Tag("items")],
        Discriminator(
            _kind,
            custom_error_type="content_type",
            custom_error_message='Content should be a string, an item like {"type": "text", "text": "…"}, '
            "or a list of items",
        ),
    ],
)


def _document_kind(content: Any) -> str | None:
    if isinstance(content, URL) or (isinstance(content, dict) and "uri" in content):
        return "url"
    return _kind(content)


DocumentContent = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[InterleavedContentItem, Tag("item")]
    | Annotated[list[InterleavedContentItem], Tag("items")]
    | Annotated[URL, Tag("url")],
    Discriminator(
        _document_kind,
        custom_error_type="content_type",
        custom_error_message='Content should be a string, an item like {"type": "text", "text": "…"}, '
        'a list of items, or {"uri": "…"}',
    ),
]
"""The content of a document: inline, or a URL to fetch it from."""

BuiltinTool = TypeAliasType(
    "BuiltinTool", Literal["brave_search", "wolfram_alpha", "photogen", "code_interpreter"]
)

Scalar = str | int | float | bool | None
ToolArgument = Scalar | list[Scalar] | dict[str, Scalar]


class ToolCall(Schema):
    """A model's call of a tool. `arguments_json` has the same arguments as JSON text, however nested."""

    call_id: str
    tool_name: BuiltinTool | str
    arguments: str | dict[str, ToolArgument]
    arguments_json: str | None = None


ToolCallParseStatus = TypeAliasType(
    "ToolCallParseStatus", Literal["started", "in_progress", "failed", "succeeded"]
)


class TextDelta(Schema):
    type: Literal["text"] = "text"
    text: str


class ImageDelta(Schema):
    type: Literal["image"] = "image"
    image: Base64


class ToolCallDelta(Schema):
    """A tool call, or its raw text while it is incomplete or when it could not be parsed."""

    type: Literal["tool_call"] = "tool_call"
    tool_call: str | ToolCall
    parse_status: ToolCallParseStatus


ContentDelta = TypeAliasType(
    "ContentDelta", Annotated[TextDelta | ImageDelta | ToolCallDelta, Field(discriminator="type")]
)
