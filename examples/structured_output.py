"""JSON that fits a schema: decoding is constrained, so that even the smallest model cannot miss.

Start a server with `stack up`, then: python examples/structured_output.py
"""

import json
import os

from llama_stack_client import LlamaStackClient
from pydantic import BaseModel


class City(BaseModel):
    name: str
    country: str
    language: str
    capital: bool


client = LlamaStackClient(base_url=os.environ.get("STACK_URL", "http://127.0.0.1:8321"))
answer = client.inference.chat_completion(
    model_id="smollm2-135m",
    messages=[{"role": "user", "content": "Describe the city of Lima."}],
    response_format={"type": "json_schema", "json_schema": City.model_json_schema()},
    sampling_params={"strategy": {"type": "greedy"}, "max_tokens": 200},
)
print(json.dumps(json.loads(answer.completion_message.content), indent=2))
print(City.model_validate_json(answer.completion_message.content))
