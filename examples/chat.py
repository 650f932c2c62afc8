"""One question, one answer.

Start a server with `stack up`, then: python examples/chat.py "What is a llama?"
"""

import os
import sys

from llama_stack_client import LlamaStackClient

client = LlamaStackClient(base_url=os.environ.get("STACK_URL", "http://127.0.0.1:8321"))
answer = client.inference.chat_completion(
    model_id="smollm2-135m",
    messages=[
        {"role": "system", "content": "Answer in one sentence."},
        {"role": "user", "content": " ".join(sys.argv[1:]) or "What is a llama?"},
    ],
    sampling_params={"strategy": {"type": "top_p", "temperature": 0.7, "top_p": 0.9}, "max_tokens": 100},
)
print(answer.completion_message.content)
