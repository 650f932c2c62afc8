"""The tools of `builtin::rag`: what the RAG tool does, for models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stack.errors import BadRequest
from stack.rag.job import is_large
from stack.rag.rag import Rag
from stack.schemas.common import JsonObject
from stack.schemas.tools import (
    QueryRequest,
    RAGDocument,
    RAGQueryConfig,
    ToolDef,
    ToolGroup,
    ToolInvocationResult,
)
from stack.tools.base import CallContext, text_parameter

SEARCH = ToolDef(
    name="knowledge_search",
    description="Search for information in a database.",
    parameters=[
        text_parameter("query", "The query to search for. Can be a natural language sentence or keywords.")
    ],
)
INSERT = ToolDef(name="insert_into_memory", description="Insert documents into memory", parameters=[])
CHUNK_SIZE = 512


class Args(BaseModel):
    """What a group's or an agent's `args`, or the kwargs of a call, say beside the query."""

    model_config = ConfigDict(extra="ignore")

    vector_db_ids: list[str] = []
    query_config: RAGQueryConfig | None = None
    vector_db_id: str | None = None
    documents: list[RAGDocument] = []
    chunk_size_in_tokens: int = Field(CHUNK_SIZE, ge=1)

    @field_validator("query_config", mode="before")
    @classmethod
    def _default_generator(cls, config: Any) -> Any:
        if isinstance(config, dict):
            return {"query_generator_config": {"type": "default"}} | config
        return config


class RagTools:
    kind = "rag"
    extras = frozenset(Args.model_fields)

    def __init__(self, rag: Rag) -> None:
        self._rag = rag

    def check_args(self, args: JsonObject) -> None:
        _parsed(args)

    async def tools(self, group: ToolGroup, provider_data: Mapping[str, Any]) -> Sequence[ToolDef]:
        return [SEARCH, INSERT]

    async def invoke(
        self, group: ToolGroup, tool_name: str, arguments: JsonObject, context: CallContext
    ) -> ToolInvocationResult:
        args = _parsed(context.args)
        if tool_name == INSERT.name:
            return await self._insert(args)
        return await self._search(str(arguments["query"]), args, context.provider_data)

    async def _search(self, query: str, args: Args, provider_data: Mapping[str, Any]) -> ToolInvocationResult:
        if not args.vector_db_ids:
            raise BadRequest(
                "knowledge_search has nothing to search: give the tool group "
                '"args": {"vector_db_ids": ["…"]}, or invoke it with vector_db_ids'
            )
        request = QueryRequest(
            content=query, vector_db_ids=args.vector_db_ids, query_config=args.query_config
        )
        found = await self._rag.query(request, provider_data)
        content = found.content if found.content is not None else "knowledge_search tool found 0 chunks."
        return ToolInvocationResult(content=content, metadata=found.metadata)

    async def _insert(self, args: Args) -> ToolInvocationResult:
        if not args.documents or args.vector_db_id is None:
            raise BadRequest(
                "there is nothing to insert: give documents and vector_db_id, "
                "or insert them with POST /v1/tool-runtime/rag-tool/insert"
            )
        if is_large(args.documents):
            raise BadRequest(
                "these documents are too many or too large for a tool: "
                "insert them with POST /v1/tool-runtime/rag-tool/insert"
            )
        await self._rag.ingest.insert(args.vector_db_id, args.documents, args.chunk_size_in_tokens)
        ids: JsonObject = {"document_ids": [document.document_id for document in args.documents]}
        text = f"{len(args.documents)} documents are inserted into {args.vector_db_id}."
        return ToolInvocationResult(content=text, metadata=ids)


def _parsed(args: JsonObject) -> Args:
    try:
        return Args.model_validate(args)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"args.{where}: {first['msg'].lower()}") from error
