"""A tool that the model must call, run here, and its answer to the result.

Start a server with `stack up`, then: python examples/tools.py
"""

import os

from llama_stack_client import LlamaStackClient


def get_weather(city: str) -> str:
    return f"It is sunny in {city}, 24 degrees."


weather = {
    "tool_name": "get_weather",
    "description": "Tells the weather in a city.",
    "parameters": {"city": {"param_type": "string", "description": "The city's name", "required": True}},
}
client = LlamaStackClient(base_url=os.environ.get("STACK_URL", "http://127.0.0.1:8321"))
messages = [{"role": "user", "content": "What is the weather in Paris?"}]
sampling = {"strategy": {"type": "greedy"}, "max_tokens": 100}

asked = client.inference.chat_completion(
    model_id="smollm2-135m",
    messages=messages,
    tools=[weather],
    tool_config={"tool_choice": "required"},
    sampling_params=sampling,
)
call = asked.completion_message.tool_calls[0]
print("call:", call.tool_name, call.arguments)

result = get_weather(**call.arguments)
print("result:", result)

messages += [
    asked.completion_message.to_dict(),
    {"role": "tool", "call_id": call.call_id, "content": result},
]
answer = client.inference.chat_completion(
    model_id="smollm2-135m", messages=messages, sampling_params=sampling
)
print("answer:", answer.completion_message.content)
