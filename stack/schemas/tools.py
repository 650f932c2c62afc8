"""ToolGroups and ToolRuntime: which tools there are, calling them, and the RAG tool."""

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, model_validator
from typing_extensions import TypeAliasType

from stack.schemas.common import URL, Identifier, JsonObject, Schema
from stack.schemas.content import DocumentContent, InterleavedContent

ToolHost = TypeAliasType("ToolHost", Literal["distribution", "client", "model_context_protocol"])


class ToolParameter(Schema):
    name: str
    parameter_type: str
    description: str
    required: bool = True
    default: JsonValue = None


class ToolDef(Schema):
    """A tool as its group or a client describes it."""

    name: str
    description: str | None = None
    parameters: list[ToolParameter] | None = None
    metadata: JsonObject | None = None

    @model_validator(mode="before")
    @classmethod
    def _ignore_prompt_format(cls, data: Any) -> Any:
        """llama-stack-client 0.1.9 adds a key that the spec lacks; the format is the ToolConfig's to say."""
        if isinstance(data, dict) and "tool_prompt_format" in data:
            return {key: value for key, value in data.items() if key != "tool_prompt_format"}
        return data


class Tool(Schema):
    """A tool of a registered group."""

    identifier: str
    provider_resource_id: str
    provider_id: str
    type: Literal["tool"] = "tool"
    toolgroup_id: str
    tool_host: ToolHost
    description: str
    parameters: list[ToolParameter]
    metadata: JsonObject | None = None


class ListToolsResponse(Schema):
    data: list[Tool]


class ToolGroup(Schema):
    identifier: str
    provider_resource_id: str
    provider_id: str
    type: Literal["tool_group"] = "tool_group"
    mcp_endpoint: URL | None = None
    args: JsonObject | None = None


class RegisterToolGroupRequest(Schema):
    toolgroup_id: Identifier
    provider_id: str
    mcp_endpoint: URL | None = None
    args: JsonObject | None = None


class ListToolGroupsResponse(Schema):
    data: list[ToolGroup]


class InvokeToolRequest(Schema):
    tool_name: str
    kwargs: JsonObject


class ToolInvocationResult(Schema):
    content: InterleavedContent | None = None
    error_message: str | None = None
    error_code: int | None = None
    metadata: JsonObject | None = None


class RAGDocument(Schema):
    """A document to be used for document ingestion in the RAG Tool."""

    document_id: str
    content: DocumentContent
    mime_type: str | None = None
    metadata: JsonObject


class InsertRequest(Schema):
    documents: list[RAGDocument]
    vector_db_id: str
    chunk_size_in_tokens: int = Field(ge=1)


class DefaultRAGQueryGeneratorConfig(Schema):
    """The query is the messages' texts, joined."""

    type: Literal["default"] = "default"
    separator: str = " "


class LLMRAGQueryGeneratorConfig(Schema):
    """A model writes the query, prompted with the template."""

    type: Literal["llm"] = "llm"
    model: str
    template: str


RAGQueryGeneratorConfig = TypeAliasType(
    "RAGQueryGeneratorConfig",
    Annotated[
        DefaultRAGQueryGeneratorConfig | LLMRAGQueryGeneratorConfig,
        Field(discriminator="type"),
    ],
)


class RAGQueryConfig(Schema):
    query_generator_config: RAGQueryGeneratorConfig
    max_tokens_in_context: int = Field(4096, ge=1)
    max_chunks: int = Field(5, ge=1)


class QueryRequest(Schema):
    content: InterleavedContent
    vector_db_ids: list[str]
    query_config: RAGQueryConfig | None = None


class RAGQueryResult(Schema):
    content: InterleavedContent | None = None
    metadata: JsonObject
