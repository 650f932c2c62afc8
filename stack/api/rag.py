"""ToolRuntime's RAG tool: documents into vector databases, and context for a question out of them."""

from __future__ import annotations

from fastapi import Response
from starlette.requests import Request
from starlette.responses import JSONResponse

from stack.api.routing import api_router
from stack.context import CurrentStack, ProviderData
from stack.rag import job
from stack.rag.ingest import TooMuchAtOnce
from stack.rag.load import with_own_url
from stack.schemas.tools import InsertRequest, QueryRequest, RAGQueryResult

router = api_router("ToolRuntime")


@router.post("/v1/tool-runtime/rag-tool/insert", response_model=None)
async def insert(request: InsertRequest, stack: CurrentStack, http: Request) -> Response | None:
    """Index documents so they can be used by the RAG system: all of them, or none and an error.

    A document that is there already is replaced. More than 200 documents, or 8 MiB of them, are a job: the
    answer is 202 with `x-job-id` when that takes longer than 45 s, and a document that cannot be read does
    not keep out the others.
    """
    base_url = str(http.base_url)
    documents = [with_own_url(document, base_url, stack.settings) for document in request.documents]
    request = request.model_copy(update={"documents": documents})
    if not job.is_large(documents):
        try:
            size = request.chunk_size_in_tokens
            await stack.rag.ingest.insert(request.vector_db_id, documents, size)
            return None
        except TooMuchAtOnce:
            pass  # what the URLs lead to is only known now
    submitted = await job.submit(request, stack.jobs, stack.storage, stack.vector_dbs)
    last = await job.wait(submitted, stack.jobs)
    if not last.ended:
        return JSONResponse(None, 202, job.described(last))
    await job.check(last, stack.jobs)
    return None


@router.post("/v1/tool-runtime/rag-tool/query")
async def query(request: QueryRequest, stack: CurrentStack, provider_data: ProviderData) -> RAGQueryResult:
    """Query the RAG system for context; typically invoked by the agent.

    `content` is a list: a header, one text for each chunk, a footer; null when nothing was found.
    """
    return await stack.rag.query(request, provider_data)
