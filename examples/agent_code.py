"""A helper that runs code in the sandbox, over a file that comes with the question; plots come back as files.

Start a server with `stack up`, then: python examples/agent_code.py
"""

import base64
import os

from llama_stack_client import Agent, AgentEventLogger, LlamaStackClient

SALES = "month,sales\nJanuary,120\nFebruary,95\nMarch,143\n"

client = LlamaStackClient(base_url=os.environ.get("STACK_URL", "http://127.0.0.1:8321"))

# What a person's own code does in the sandbox: the same tool, called directly.
code = """
import matplotlib.pyplot as plt

months, sales = ["January", "February", "March"], [120, 95, 143]
plt.bar(months, sales)
plt.savefig("sales.png")
print("total:", sum(sales))
"""
result = client.tool_runtime.invoke_tool(tool_name="code_interpreter", kwargs={"code": code})
for item in result.content if isinstance(result.content, list) else [result.content]:
    if getattr(item, "type", "text") == "image":
        print("a plot of", len(base64.b64decode(item.image.data)), "bytes")
    else:
        print(getattr(item, "text", item))

# A model that writes the code itself. A small one writes poor code, but it always writes a well-formed call.
agent = Agent(
    client,
    model="smollm2-135m",
    instructions="You write short Python programs.",
    tools=["builtin::code_interpreter"],
    tool_config={"tool_choice": "required", "tool_prompt_format": "function_tag"},
    sampling_params={"strategy": {"type": "greedy"}, "max_tokens": 60},
    max_infer_iters=2,
)
session_id = agent.create_session("code")
turn = agent.create_turn(
    messages=[{"role": "user", "content": "Print the first line of the file."}],
    documents=[{"content": SALES, "mime_type": "text/csv"}],
    session_id=session_id,
)
for event in AgentEventLogger().log(turn):
    event.print()
