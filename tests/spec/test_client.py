"""llama-stack-client 0.1.9 and our wire types understand each other, in both directions."""

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from llama_stack_client import Agent as ClientAgent
from llama_stack_client import AgentEventLogger, APIResponseValidationError, LlamaStackClient
from pydantic import BaseModel

from stack.schemas import agents, inference, inspect, models, providers, tools
from stack.schemas.content import TextContentItem, TextDelta, ToolCall, ToolCallDelta
from stack.schemas.messages import CompletionMessage, UserMessage
from tests.spec.wire import Wire

METRICS = [inference.MetricInResponse(metric="prompt_tokens", value=3)]
LOGPROBS = [inference.TokenLogProbs(logprobs_by_token={"a": -0.5})]
CALL = ToolCall(
    call_id="c1",
    tool_name="add",
    arguments={"x": 1, "y": [2, None]},
    arguments_json='{"x": 1, "y": [2, null]}',
)


def completion(text: str = "", **more: Any) -> CompletionMessage:
    return CompletionMessage(content=text, **({"stop_reason": "end_of_turn"} | more))


def test_models(client: LlamaStackClient, wire: Wire) -> None:
    model = models.Model(
        identifier="org/m",
        provider_resource_id="m",
        provider_id="p",
        metadata={"n": None},
        model_type="embedding",
    )
    wire.answers = {
        "POST /v1/models": [model],
        "GET /v1/models": [models.ListModelsResponse(data=[model])],
        "GET /v1/models/{model_id}": [model],
        "DELETE /v1/models/{model_id}": [None],
    }
    registered = client.models.register(
        model_id="org/m", model_type="embedding", provider_model_id="m", metadata={"embedding_dimension": 384}
    )
    assert registered.api_model_type == "embedding"
    assert registered.metadata == {"n": None}
    assert [each.identifier for each in client.models.list()] == ["org/m"]
    assert client.models.retrieve("org/m").provider_id == "p"
    assert client.models.unregister("org/m") is None
    assert wire.requests == [
        models.RegisterModelRequest(
            model_id="org/m",
            provider_model_id="m",
            metadata={"embedding_dimension": 384},
            model_type="embedding",
        )
    ]


def test_inspect_and_providers(client: LlamaStackClient, wire: Wire) -> None:
    provider = providers.ProviderInfo(
        api="inference", provider_id="p", provider_type="t", config={"key": "***"}
    )
    route = inspect.RouteInfo(route="/v1/models", method="GET", provider_types=["t"])
    wire.answers = {
        "GET /v1/health": [inspect.HealthInfo(status="OK")],
        "GET /v1/version": [inspect.VersionInfo(version="0.1.0")],
        "GET /v1/inspect/routes": [inspect.ListRoutesResponse(data=[route])],
        "GET /v1/providers": [providers.ListProvidersResponse(data=[provider])],
        "GET /v1/providers/{provider_id}": [provider],
    }
    assert client.inspect.health().status == "OK"
    assert client.inspect.version().version == "0.1.0"
    assert [each.route for each in client.routes.list()] == ["/v1/models"]
    assert [each.provider_id for each in client.providers.list()] == ["p"]
    assert client.providers.retrieve("p").config == {"key": "***"}


CHAT: dict[str, Any] = {
    "model_id": "m",
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "1 + 2?"}]},
        {
            "role": "assistant",
            "content": "",
            "stop_reason": "end_of_message",
            "tool_calls": [{"call_id": "c1", "tool_name": "add", "arguments": {"x": 1, "y": 2.5}}],
        },
        {"role": "tool", "call_id": "c1", "content": {"type": "image", "image": {"url": {"uri": "data:,"}}}},
    ],
    "sampling_params": {"strategy": {"type": "top_p", "temperature": 0.5, "top_p": 0.9}, "max_tokens": 8},
    "tools": [
        {"tool_name": "add", "parameters": {"x": {"param_type": "int", "required": True, "default": 1}}}
    ],
    "tool_config": {"tool_choice": "add", "tool_prompt_format": "json", "system_message_behavior": "replace"},
    "response_format": {"type": "json_schema", "json_schema": {"type": "object", "default": None}},
    "logprobs": {"top_k": 2},
}


def test_chat_completion(client: LlamaStackClient, wire: Wire) -> None:
    message = completion("3", stop_reason="end_of_message", tool_calls=[CALL])
    wire.answers["POST /v1/inference/chat-completion"] = [
        inference.ChatCompletionResponse(completion_message=message, metrics=METRICS, logprobs=LOGPROBS),
        inference.ChatCompletionResponse(completion_message=completion("3")),
    ]
    answer = client.inference.chat_completion(**CHAT)
    assert answer.completion_message.tool_calls[0].arguments == {"x": 1, "y": [2, None]}
    assert answer.metrics[0].value == 3
    # What the client parsed can be sent back as a part of the history.
    client.inference.chat_completion(model_id="m", messages=[CHAT["messages"][1], answer.completion_message])
    first, second = wire.requests
    assert first == inference.ChatCompletionRequest.model_validate(CHAT)
    assert isinstance(second, inference.ChatCompletionRequest)
    assert second.messages[1] == message


def test_streamed_chat_completion(client: LlamaStackClient, wire: Wire) -> None:
    deltas = [
        TextDelta(text=""),
        TextDelta(text="3"),
        ToolCallDelta(tool_call="{", parse_status="failed"),
        ToolCallDelta(tool_call=CALL, parse_status="succeeded"),
    ]
    events = [
        inference.ChatCompletionResponseEvent(event_type="start" if i == 0 else "progress", delta=delta)
        for i, delta in enumerate(deltas)
    ]
    events.append(
        inference.ChatCompletionResponseEvent(
            event_type="complete", delta=TextDelta(text=""), stop_reason="end_of_turn", logprobs=LOGPROBS
        )
    )
    wire.answers["POST /v1/inference/chat-completion"] = [
        [inference.ChatCompletionResponseStreamChunk(event=event, metrics=METRICS) for event in events]
    ]
    chunks = list(client.inference.chat_completion(**CHAT, stream=True))
    assert [chunk.event.event_type for chunk in chunks] == ["start", *["progress"] * 3, "complete"]
    assert chunks[2].event.delta.tool_call == "{"
    assert chunks[3].event.delta.tool_call.arguments_json == CALL.arguments_json
    assert chunks[4].event.stop_reason == "end_of_turn"
    assert wire.requests == [inference.ChatCompletionRequest.model_validate(CHAT | {"stream": True})]


def test_completion_and_embeddings(client: LlamaStackClient, wire: Wire) -> None:
    wire.answers = {
        "POST /v1/inference/completion": [
            inference.CompletionResponse(content="b", stop_reason="out_of_tokens", logprobs=LOGPROBS),
            [
                inference.CompletionResponseStreamChunk(delta="b"),
                inference.CompletionResponseStreamChunk(delta="", stop_reason="end_of_turn", metrics=METRICS),
            ],
        ],
        "POST /v1/inference/embeddings": [inference.EmbeddingsResponse(embeddings=[[0.5, -1.0]])] * 2,
    }
    assert client.inference.completion(model_id="m", content="a").content == "b"
    # The client's strict mode knows no chunks of a completion: it takes each for a CompletionResponse.
    with LlamaStackClient(base_url="http://stack", http_client=httpx.Client(transport=wire)) as usual:
        chunks = list(usual.inference.completion(model_id="m", content="a", stream=True))
    assert [chunk.delta for chunk in chunks] == ["b", ""]
    assert client.inference.embeddings(
        model_id="m", contents=["a"], text_truncation="end", output_dimension=2, task_type="query"
    ).embeddings == [[0.5, -1.0]]
    client.inference.embeddings(model_id="m", contents=[{"type": "text", "text": "a"}])
    assert wire.requests[-1] == inference.EmbeddingsRequest(
        model_id="m", contents=[TextContentItem(text="a")]
    )


def test_tools(client: LlamaStackClient, wire: Wire) -> None:
    parameter = tools.ToolParameter(name="q", parameter_type="string", description="", default={"a": None})
    tool = tools.Tool(
        identifier="t",
        provider_resource_id="t",
        provider_id="p",
        toolgroup_id="g",
        tool_host="distribution",
        description="",
        parameters=[parameter],
    )
    group = tools.ToolGroup(identifier="g", provider_resource_id="g", provider_id="p", args={"k": None})
    wire.answers = {
        "GET /v1/tools": [tools.ListToolsResponse(data=[tool])],
        "GET /v1/toolgroups": [tools.ListToolGroupsResponse(data=[group])],
        "POST /v1/toolgroups": [None],
        "POST /v1/tool-runtime/invoke": [tools.ToolInvocationResult(content="x", metadata={"a": None})],
        "POST /v1/tool-runtime/rag-tool/insert": [None],
        "POST /v1/tool-runtime/rag-tool/query": [
            tools.RAGQueryResult(content=[TextContentItem(text="x")], metadata={"document_ids": ["d"]})
        ],
    }
    assert client.tools.list(toolgroup_id="g")[0].parameters[0].default == {"a": None}
    assert client.toolgroups.list()[0].args == {"k": None}
    client.toolgroups.register(toolgroup_id="g", provider_id="p", mcp_endpoint={"uri": "http://mcp/sse"})
    result = client.tool_runtime.invoke_tool(tool_name="t", kwargs={"q": "x", "n": None})
    assert result.metadata == {"a": None}
    document = {"document_id": "d", "content": {"uri": "http://d"}, "metadata": {}, "mime_type": "text/plain"}
    client.tool_runtime.rag_tool.insert(documents=[document], vector_db_id="v", chunk_size_in_tokens=64)
    answer = client.tool_runtime.rag_tool.query(
        content="q",
        vector_db_ids=["v"],
        query_config={
            "query_generator_config": {"type": "default", "separator": " "},
            "max_tokens_in_context": 99,
            "max_chunks": 2,
        },
    )
    assert answer.metadata == {"document_ids": ["d"]}
    assert [type(request).__name__ for request in wire.requests] == [
        "RegisterToolGroupRequest",
        "InvokeToolRequest",
        "InsertRequest",
        "QueryRequest",
    ]


def add(x: int, y: int = 2) -> int:
    """Add two numbers.

    :param x: one number
    :param y: another number
    """
    return x + y


NOW = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)


def turn(message: CompletionMessage, *steps: Any) -> agents.Turn:
    return agents.Turn(
        turn_id="t1",
        session_id="s1",
        input_messages=[UserMessage(content="1 + 2?")],
        steps=list(steps),
        output_message=message,
        started_at=NOW,
        completed_at=NOW,
    )


def stream(*payloads: Any) -> list[BaseModel]:
    return [
        agents.AgentTurnResponseStreamChunk(event=agents.AgentTurnResponseEvent(payload=payload))
        for payload in payloads
    ]


def test_agent_with_a_client_tool(
    client: LlamaStackClient, wire: Wire, capsys: pytest.CaptureFixture[str]
) -> None:
    """The client's Agent creates an agent, runs a turn, runs the tool that the turn asks for, and resumes."""
    call = ToolCall(call_id="c1", tool_name="add", arguments={"x": 1}, arguments_json='{"x": 1}')
    asking = completion(stop_reason="end_of_message", tool_calls=[call])
    steps = {"turn_id": "t1", "step_id": "i1", "started_at": NOW, "completed_at": NOW}
    inferred = agents.InferenceStep(model_response=asking, **steps)
    executed = agents.ToolExecutionStep(
        tool_calls=[call],
        tool_responses=[
            agents.ToolResponse(call_id="c1", tool_name="add", content="3", metadata={"a": None})
        ],
        **steps,
    )
    progress = {"step_type": "inference", "step_id": "i1"}
    wire.answers = {
        "POST /v1/agents": [agents.AgentCreateResponse(agent_id="a1")],
        "POST /v1/agents/{agent_id}/session": [agents.AgentSessionCreateResponse(session_id="s1")],
        "GET /v1/tools": [tools.ListToolsResponse(data=[])] * 2,
        "POST /v1/agents/{agent_id}/session/{session_id}/turn": [
            stream(
                agents.AgentTurnResponseTurnStartPayload(turn_id="t1"),
                agents.AgentTurnResponseStepStartPayload(**progress),
                agents.AgentTurnResponseStepProgressPayload(
                    delta=ToolCallDelta(tool_call=call, parse_status="succeeded"), **progress
                ),
                agents.AgentTurnResponseStepCompletePayload(step_details=inferred, **progress),
                agents.AgentTurnResponseTurnAwaitingInputPayload(turn=turn(asking, inferred)),
            )
        ],
        "POST /v1/agents/{agent_id}/session/{session_id}/turn/{turn_id}/resume": [
            stream(
                agents.AgentTurnResponseStepCompletePayload(
                    step_type="tool_execution", step_id="i2", step_details=executed
                ),
                agents.AgentTurnResponseTurnCompletePayload(turn=turn(completion("3"), inferred, executed)),
            )
        ],
    }
    agent = ClientAgent(
        client,
        model="m",
        instructions="Be kind.",
        tools=[add, "builtin::websearch", {"name": "builtin::rag", "args": {"vector_db_ids": ["v"]}}],
        tool_config={"tool_choice": "auto"},
        sampling_params={"strategy": {"type": "greedy"}},
        max_infer_iters=3,
        input_shields=["shield"],
        enable_session_persistence=True,
    )
    session_id = agent.create_session("mine")
    chunks = list(agent.create_turn([{"role": "user", "content": "1 + 2?"}], session_id=session_id))
    for event in AgentEventLogger().log(chunks):
        event.print()
    assert "add" in capsys.readouterr().out
    assert chunks[-1].event.payload.turn.output_message.content == "3"
    assert chunks[-1].event.payload.turn.steps[1].tool_responses[0].metadata == {"a": None}
    created, _, _, resumed = wire.requests
    assert isinstance(created, agents.CreateAgentRequest)
    assert created.agent_config.client_tools is not None
    assert created.agent_config.client_tools[0].name == "add"
    assert isinstance(resumed, agents.ResumeAgentTurnRequest)
    assert resumed.tool_responses[0].content == "3"


def test_a_wrong_answer_is_noticed(client: LlamaStackClient, wire: Wire) -> None:
    """The client's strict mode, on which these tests rely, does refuse what is not its type."""
    wire.answers["GET /v1/health"] = [inspect.VersionInfo(version="1")]
    with pytest.raises(APIResponseValidationError):
        client.inspect.health()
