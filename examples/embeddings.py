"""Which text is closest in meaning to a question?

Start a server with `stack up`, then: python examples/embeddings.py
"""

import math
import os

from llama_stack_client import LlamaStackClient

TEXTS = [
    "Llamas live in the Andes and are kept for their wool.",
    "Ray runs Python on many machines.",
    "The bakery opens at seven in the morning.",
]
QUESTION = "Where do these animals come from?"


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


client = LlamaStackClient(base_url=os.environ.get("STACK_URL", "http://127.0.0.1:8321"))
answer = client.inference.embeddings(model_id="all-MiniLM-L6-v2", contents=[QUESTION, *TEXTS])
question, *vectors = answer.embeddings
for score, text in sorted(
    ((cosine(question, vector), text) for vector, text in zip(vectors, TEXTS, strict=True)), reverse=True
):
    print(f"{score:.2f}  {text}")
