"""Register rows, read them by pages, append more.

Start a server with `stack up`, then: python examples/datasets.py
"""

import os

import httpx
from llama_stack_client import LlamaStackClient

QUESTIONS = [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(5)]

url = os.environ.get("STACK_URL", "http://127.0.0.1:8321")
client = LlamaStackClient(base_url=url)
dataset = client.datasets.register(
    purpose="eval/question-answer",
    source={"type": "rows", "rows": QUESTIONS},
)
print("registered", dataset.identifier)

# The client's library has no call for this one.
more = {"rows": [{"question": "What is 7 + 7?", "answer": "14"}]}
httpx.post(f"{url}/v1/datasetio/append-rows/{dataset.identifier}", json=more).raise_for_status()

start: int | None = 0
while start is not None:
    page = client.datasets.iterrows(dataset.identifier, start_index=start, limit=4)
    for row in page.data:
        print(row["question"], row["answer"])
    start = page.next_start_index
client.datasets.unregister(dataset.identifier)
