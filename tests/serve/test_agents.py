"""Agents on the real server, with the real small model, through llama-stack-client's own helpers."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from llama_stack_client import Agent, AgentEventLogger, BadRequestError, LlamaStackClient
from llama_stack_client.lib.agents.client_tool import client_tool
from llama_stack_client.lib.agents.react.agent import ReActAgent

from tests.serve.conftest import Server
from tests.serve.test_examples import run
from tests.tools.mcp.server import mcp_server
from tests.tools.servers import Served

MODEL = "smollm2-135m"
GREEDY: Any = {"strategy": {"type": "greedy"}, "max_tokens": 40}
MUST_CALL: Any = {"tool_choice": "required", "tool_prompt_format": "function_tag"}


@client_tool
def get_weather(city: str) -> str:
    """Tells the weather in a city.

    :param city: The city's name
    """
    return f"It is sunny in {city}."


@pytest.fixture(scope="module")
def mcp(client: LlamaStackClient) -> Iterator[Served]:
    """A real MCP server, registered as a tool group."""
    served = Served(mcp_server().streamable_http_app())
    client.toolgroups.register(
        toolgroup_id="mcp::farm",
        provider_id="model-context-protocol",
        mcp_endpoint={"uri": f"{served.url}/mcp"},
    )
    yield served
    client.toolgroups.unregister("mcp::farm")
    served.stop()


def new(client: LlamaStackClient, **options: Any) -> tuple[Any, str]:
    settings = {"instructions": "Be brief.", "sampling_params": GREEDY, **options}
    agent = Agent(client, model=MODEL, **settings)
    return agent, agent.create_session("a talk")


def ask(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_tool_of_an_mcp_server_is_called(client: LlamaStackClient, mcp: Served) -> None:
    agent, session_id = new(client, tools=["mcp::farm/add"], tool_config=MUST_CALL, max_infer_iters=3)
    events = list(agent.create_turn(ask("Add 2 and 3."), session_id))
    shown = "".join(str(line) for line in AgentEventLogger().log(iter(events)))
    assert "tool_execution> Tool:add" in shown
    turn = events[-1].event.payload.turn
    kinds = [step.step_type for step in turn.steps]
    assert kinds[:3] == ["inference", "tool_execution", "inference"]
    (response,) = turn.steps[1].tool_responses
    assert str(response.content).lstrip("-").isdigit()  # what the server computed
    stored = client.agents.session.retrieve(session_id, agent_id=agent.agent_id).turns
    assert [each.turn_id for each in stored] == [turn.turn_id]
    assert stored[0].output_message.content == turn.output_message.content
    step = client.agents.steps.retrieve(
        turn.steps[1].step_id, agent_id=agent.agent_id, session_id=session_id, turn_id=turn.turn_id
    )
    assert step.step.step_id == turn.steps[1].step_id


def test_client_tool_is_run_by_the_client(client: LlamaStackClient) -> None:
    agent, session_id = new(client, tools=[get_weather], tool_config=MUST_CALL)
    turn = agent.create_turn(ask("What is the weather in Paris?"), session_id, stream=False)
    kinds = [step.step_type for step in turn.steps]
    assert kinds[:3] == ["inference", "tool_execution", "inference"]
    assert str(turn.steps[1].tool_responses[0].content).strip('"').startswith("It is sunny in ")
    assert turn.output_message.stop_reason in ("end_of_turn", "out_of_tokens")


def test_react_agent_goes_on_after_its_own_calls(client: LlamaStackClient) -> None:
    agent = ReActAgent(
        client=client,
        model=MODEL,
        tools=[get_weather],
        json_response_format=True,
        sampling_params={"strategy": {"type": "greedy"}, "max_tokens": 50},
        max_infer_iters=1,
    )
    session_id = agent.create_session("react")
    problem = ""
    try:
        list(agent.create_turn(ask("What is the weather in Paris?"), session_id))
    except Exception as error:
        problem = str(error)
    assert problem in ("", "Max inference iterations reached")  # the client's own limit
    (turn,) = client.agents.session.retrieve(session_id, agent_id=agent.agent_id).turns
    calls = sum(step.step_type == "tool_execution" for step in turn.steps)
    answers = sum(step.step_type == "inference" for step in turn.steps)
    assert answers == calls + 1  # each of its calls was followed by an answer, in one turn


def test_shield_ends_a_turn(client: LlamaStackClient) -> None:
    agent, session_id = new(client, input_shields=["pii"])
    turn = agent.create_turn(ask("My card is 4111 1111 1111 1111."), session_id, stream=False)
    assert [step.step_type for step in turn.steps] == ["shield_call"]
    assert turn.steps[0].violation.violation_level == "error"
    assert turn.output_message.content == turn.steps[0].violation.user_message
    events = list(agent.create_turn(ask("Say hello."), session_id))
    assert [event.event.payload.event_type for event in events[:3]] == [
        "turn_start", "step_start", "step_complete",
    ]  # fmt: skip
    assert events[1].event.payload.metadata["touchpoint"] == "user-input"


def test_documents_are_searched(client: LlamaStackClient) -> None:
    tools = ["builtin::rag/knowledge_search"]
    agent, session_id = new(client, tools=tools, tool_config=MUST_CALL, max_infer_iters=2)
    turn = agent.create_turn(
        ask("What do llamas eat?"),
        session_id,
        documents=[{"content": "Llamas eat hay and grass.", "mime_type": "text/plain"}],
        stream=False,
    )
    (response,) = turn.steps[1].tool_responses
    assert "hay and grass" in str(response.content)
    assert response.metadata["document_ids"][0].endswith("document-1.txt")
    database = f"session-{session_id}"
    assert database in [each.identifier for each in client.vector_dbs.list()]
    client.agents.session.delete(session_id, agent_id=agent.agent_id)
    assert database not in [each.identifier for each in client.vector_dbs.list()]


def test_code_reads_a_document_and_gives_a_file_back(client: LlamaStackClient) -> None:
    result = client.tool_runtime.invoke_tool(
        tool_name="code_interpreter", kwargs={"code": "open('a.txt', 'w').write('b')\nprint(6 * 7)"}
    )
    assert "42" in str(result.content)
    tools = ["builtin::code_interpreter"]
    agent, session_id = new(client, tools=tools, tool_config=MUST_CALL, max_infer_iters=2)
    turn = agent.create_turn(
        ask("Read the file."),
        session_id,
        documents=[{"content": "a,b\n1,2\n", "mime_type": "text/csv"}],
        stream=False,
    )
    assert "document-1.csv" in turn.input_messages[0].context
    assert turn.steps[1].step_type == "tool_execution"


def test_agent_in_the_terminal(server: Server, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("Llamas eat hay.")
    file = tmp_path / "agent.yaml"
    file.write_text(
        f"model: {MODEL}\ntoolgroups: [builtin::rag]\ndocuments: ['*.md']\ninput_shields: [pii]\n"
        "tool_config: {tool_choice: required, tool_prompt_format: function_tag}\nmax_infer_iters: 2\n"
        "sampling_params: {strategy: {type: greedy}, max_tokens: 40}\n"
    )
    printed = run([sys.executable, "-m", "stack.cli", "agent", str(file), "What do llamas eat?"], server.url)
    assert printed.strip()
    kept = httpx.get(f"{server.url}/v1/agents").json()["data"]
    assert not any(
        agent["agent_config"].get("input_shields") == ["pii"]
        and "builtin::rag" in agent["agent_config"].get("toolgroups", [])
        for agent in kept
    )


def test_agents_are_listed_and_deleted(client: LlamaStackClient, http: httpx.Client) -> None:
    with pytest.raises(BadRequestError, match="not registered"):
        client.agents.create(agent_config={"model": "none", "instructions": ""})
    agent, session_id = new(client)
    listed = http.get("/v1/agents").json()["data"]
    assert agent.agent_id in [each["agent_id"] for each in listed]
    sessions = http.get(f"/v1/agents/{agent.agent_id}/sessions").json()["data"]
    assert [each["session_id"] for each in sessions] == [session_id]
    client.agents.delete(agent.agent_id)
    assert http.get(f"/v1/agents/{agent.agent_id}").status_code == 404


def test_shields_run_over_http(client: LlamaStackClient) -> None:
    clean = client.safety.run_shield(shield_id="code-scanner", messages=ask("Hello"), params={})
    assert clean.violation is None
    code = "```python\nimport subprocess\nsubprocess.call(input(), shell=True)\n```"
    found = client.safety.run_shield(shield_id="code-scanner", messages=ask(code), params={})
    assert found.violation is not None


def test_files_of_a_picture_are_base64(client: LlamaStackClient) -> None:
    code = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    result = client.tool_runtime.invoke_tool(tool_name="code_interpreter", kwargs={"code": code})
    images = [item for item in result.content if item.type == "image"]  # type: ignore[union-attr]
    assert base64.b64decode(images[0].image.data).startswith(b"\x89PNG")
