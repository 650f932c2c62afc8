"""Retrieval: put documents of several kinds into a vector database, and ask for what a model should read.

stack up
python examples/rag.py "When may I bring my bicycle?"
"""

import os
import sys

from llama_stack_client import LlamaStackClient
from llama_stack_client.types import Document

DATABASE = "example-handbook"

DOCUMENTS = [
    Document(
        document_id="bicycles",
        content="Bicycles may come along before 7 o'clock and after 19 o'clock. They need a ticket.",
        mime_type="text/plain",
        metadata={"source": "leaflet"},
    ),
    Document(
        document_id="handbook",
        content="# Handbook\n\n## Lost property\n\nWhat is found is kept in Lindau for six weeks.\n\n"
        "## Refunds\n\nA ticket that was not used is refunded for a fee of five euros.",
        mime_type="text/markdown",
        metadata={"source": "handbook"},
    ),
    Document(
        document_id="page",
        content="<html><head><title>Dining car</title></head><body><nav>Home | Menu</nav><main><h1>Dining car"
        "</h1><p>The dining car opens at eight and serves breakfast until eleven.</p></main></body></html>",
        mime_type="text/html",
        metadata={},
    ),
    Document(
        document_id="prices",
        content="class,price\nsecond,20 euros\nfirst,35 euros\n",
        mime_type="text/csv",
        metadata={},
    ),
    Document(
        document_id="dogs",
        content={"uri": "data:text/plain,Small%20dogs%20travel%20free.%20Large%20dogs%20need%20a%20ticket."},
        metadata={},
    ),
]


def main() -> None:
    question = " ".join(sys.argv[1:]) or "When may I bring my bicycle?"
    client = LlamaStackClient(base_url=os.environ.get("STACK_URL", "http://127.0.0.1:8321"))
    client.vector_dbs.register(vector_db_id=DATABASE, embedding_model="all-MiniLM-L6-v2")
    client.tool_runtime.rag_tool.insert(
        documents=[document.model_dump(exclude_none=True) for document in DOCUMENTS],
        vector_db_id=DATABASE,
        chunk_size_in_tokens=128,
    )
    found = client.tool_runtime.rag_tool.query(
        content=question,
        vector_db_ids=[DATABASE],
        query_config={
            "query_generator_config": {"type": "default", "separator": " "},
            "max_tokens_in_context": 1024,
            "max_chunks": 2,
        },
    )
    for item in found.content or []:
        print(item.text, end="")
    for document_id, score in zip(found.metadata["document_ids"], found.metadata["scores"], strict=True):
        print(f"{score:.3f} {document_id}")


if __name__ == "__main__":
    main()
