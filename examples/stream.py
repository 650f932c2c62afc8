"""An answer, word by word, and the tokens that it took.

Start a server with `stack up`, then: python examples/stream.py
"""

import os

from llama_stack_client import LlamaStackClient

client = LlamaStackClient(base_url=os.environ.get("STACK_URL", "http://127.0.0.1:8321"))
stream = client.inference.chat_completion(
    model_id="smollm2-135m",
    messages=[{"role": "user", "content": "Tell me a very short story about a llama."}],
    sampling_params={"strategy": {"type": "greedy"}, "max_tokens": 120},
    stream=True,
)
for chunk in stream:
    if chunk.event.delta.type == "text":
        print(chunk.event.delta.text, end="", flush=True)
    for metric in chunk.metrics or []:
        print(f"\n{metric.metric}: {metric.value:.0f}", end="")
print()
