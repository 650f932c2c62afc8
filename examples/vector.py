"""Keep notes in a vector database and find them by meaning, by words, and by their metadata.

Start a server with `stack up`, then: python examples/vector.py
"""

import os

from llama_stack_client import LlamaStackClient

client = LlamaStackClient(base_url=os.environ.get("STACK_URL", "http://127.0.0.1:8321"))

client.vector_dbs.register(vector_db_id="notes", embedding_model="all-MiniLM-L6-v2")
notes = {
    "n1": ("The pump of building 7 lost pressure; error QX-7731.", 2025),
    "n2": ("Llamas were seen on the road to the plant.", 2026),
    "n3": ("The canteen serves bread from its own oven now.", 2026),
}
client.vector_io.insert(
    vector_db_id="notes",
    chunks=[
        {"content": text, "metadata": {"document_id": name, "year": year}}
        for name, (text, year) in notes.items()
    ],
)

for query, params in (
    ("animals", {"max_chunks": 1}),
    ("QX-7731", {"max_chunks": 1, "mode": "keyword"}),
    ("what broke?", {"max_chunks": 1, "filters": {"type": "lt", "key": "year", "value": 2026}}),
):
    answer = client.vector_io.query(vector_db_id="notes", query=query, params=params)
    for chunk, score in zip(answer.chunks, answer.scores, strict=True):
        print(f"{query} -> {score:.2f} {chunk.content}")

client.vector_dbs.unregister("notes")
