"""An agent that searches a folder of documents before it answers.

Start a server with `stack up`, then: python examples/agent_documents.py [FOLDER] [QUESTION]
"""

import base64
import mimetypes
import os
import sys
from pathlib import Path

from llama_stack_client import Agent, LlamaStackClient

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "handbook")
QUESTION = sys.argv[2] if len(sys.argv) > 2 else "When may I bring my bicycle?"


def document(path: Path) -> dict:
    kind = mimetypes.guess_type(path.name)[0] or "text/plain"
    data = base64.b64encode(path.read_bytes()).decode()
    return {
        "document_id": path.name,
        "content": f"data:{kind};base64,{data}",
        "metadata": {"file": path.name},
    }


client = LlamaStackClient(base_url=os.environ.get("STACK_URL", "http://127.0.0.1:8321"))
database = f"example-{FOLDER.name}"
client.vector_dbs.register(vector_db_id=database, embedding_model="all-MiniLM-L6-v2")
documents = [document(path) for path in sorted(FOLDER.glob("*.md"))]
client.tool_runtime.rag_tool.insert(documents=documents, vector_db_id=database, chunk_size_in_tokens=128)

agent = Agent(
    client,
    model="smollm2-135m",
    instructions="Answer in one sentence, from what knowledge_search finds.",
    tools=[{"name": "builtin::rag/knowledge_search", "args": {"vector_db_ids": [database]}}],
    # It must search once. Small models write this form best; without the field, the model's own form is used.
    tool_config={"tool_choice": "required", "tool_prompt_format": "function_tag"},
    sampling_params={"strategy": {"type": "greedy"}, "max_tokens": 80},
    max_infer_iters=3,
)
session_id = agent.create_session("documents")
turn = agent.create_turn([{"role": "user", "content": QUESTION}], session_id, stream=False)

for step in turn.steps:
    if step.step_type == "tool_execution":
        for call, response in zip(step.tool_calls, step.tool_responses, strict=True):
            print("searched for:", call.arguments["query"])
            print("found in:", ", ".join(response.metadata["document_ids"]))
print("answer:", turn.output_message.content)
