"""Agents and sessions; turns of one session, one after the other; clients that leave."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI

from stack.context import Stack
from stack.settings import Settings
from tests.agents.conftest import Talk, open_talk
from tests.agents.instant import InstantModel, LocalTools, call, script
from tests.api.asgi import Exchange

CONFIG = {"model": "tiny", "instructions": "Be brief."}
TOOL = {"name": "t", "parameters": []}


async def test_agents_are_listed_read_and_deleted(client: httpx.AsyncClient) -> None:
    config = CONFIG | {
        "sampling_params": {"strategy": {"type": "greedy"}, "max_tokens": 7},
        "client_tools": [TOOL],
    }
    ids = [(await client.post("/v1/agents", json={"agent_config": config})).json()["agent_id"] for _ in "ab"]
    listed = (await client.get("/v1/agents")).json()["data"]
    assert [agent["agent_id"] for agent in listed] == ids
    one = (await client.get(f"/v1/agents/{ids[0]}")).json()
    assert one == listed[0]
    assert one["agent_config"]["sampling_params"]["max_tokens"] == 7
    assert one["agent_config"]["max_infer_iters"] == 10
    assert (await client.delete(f"/v1/agents/{ids[0]}")).json() is None
    assert (await client.get(f"/v1/agents/{ids[0]}")).status_code == 404
    assert (await client.delete(f"/v1/agents/{ids[0]}")).status_code == 404
    assert [agent["agent_id"] for agent in (await client.get("/v1/agents")).json()["data"]] == ids[1:]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "none"}, "model 'none' is not registered"),
        ({"model": "org/embedder"}, "embedding model"),
        ({"toolgroups": ["none"]}, "none"),
        ({"toolgroups": ["builtin::rag/none"]}, "none"),
        ({"toolgroups": [{"name": "none", "args": {}}]}, "none"),
        ({"input_shields": ["none"]}, "none"),
        ({"output_shields": ["none"]}, "none"),
        ({"client_tools": [TOOL, TOOL]}, "twice"),
        ({"max_infer_iters": 0}, "max_infer_iters"),
        ({"tool_choice": "none", "tool_config": {"tool_choice": "required"}}, "deprecated"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
async def test_bad_configuration_is_refused_at_once(
    client: httpx.AsyncClient, change: dict[str, Any], says: str
) -> None:
    response = await client.post("/v1/agents", json={"agent_config": CONFIG | change})
    assert response.status_code == 400, response.text
    assert says in response.json()["detail"]
    assert (await client.get("/v1/agents")).json()["data"] == []


async def test_sessions(client: httpx.AsyncClient, stack: Stack) -> None:
    talk = await open_talk(client)
    await talk.turn(script(["One."]))
    second = await talk.turn(script(["Two."]))
    found = await talk.read()
    assert found["session_name"] == "a talk"
    assert [turn["output_message"]["content"] for turn in found["turns"]] == ["One.", "Two."]
    some = await client.get(talk.url, params={"turn_ids": [second.turn_id]})
    assert [turn["turn_id"] for turn in some.json()["turns"]] == [second.turn_id]
    assert (await client.get(talk.url, params={"turn_ids": ["no"]})).status_code == 404
    listed = (await client.get(f"/v1/agents/{talk.agent_id}/sessions")).json()["data"]
    assert listed == [found | {"turns": []}]
    other = await open_talk(client)
    assert (await client.get(f"/v1/agents/{other.agent_id}/session/{talk.session_id}")).status_code == 404
    assert (await client.delete(talk.url)).json() is None
    assert (await client.get(talk.url)).status_code == 404
    assert (await talk.say("x")).status_code == 404
    assert (await client.get(f"/v1/agents/{talk.agent_id}/sessions")).json()["data"] == []
    assert (await client.get(f"/v1/agents/{uuid4()}/sessions")).status_code == 404
    assert (await client.post(f"/v1/agents/{uuid4()}/session", json={"session_name": ""})).status_code == 404


async def test_deleting_an_agent_ends_its_turns(talk: Talk, fake: InstantModel) -> None:
    running = asyncio.create_task(talk.say(script([0.3, "x"])))
    await fake.waiting.wait()
    await talk.client.delete(f"/v1/agents/{talk.agent_id}")
    response = await running
    assert response.status_code == 400
    assert "deleted while it ran" in response.json()["detail"]


USER = {"role": "user", "content": "x"}
ASSISTANT = {"role": "assistant", "content": "x", "stop_reason": "end_of_turn"}
PRIVATE = {"content": {"uri": "http://127.0.0.1:1/x"}, "mime_type": "text/plain"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"messages": []}, "messages is empty"),
        ({"messages": [ASSISTANT]}, "role"),
        ({"toolgroups": ["none"]}, "none"),
        ({"tool_config": {"tool_choice": "no_tool"}}, "no_tool"),
        ({"documents": [{"content": "", "mime_type": "text/plain"}]}, "no text"),
        ({"documents": [PRIVATE]}, "not a public host"),
    ],
)
async def test_bad_turn_is_refused_and_not_kept(talk: Talk, change: dict[str, Any], says: str) -> None:
    response = await talk.client.post(f"{talk.url}/turn", json={"messages": [USER]} | change)
    assert response.status_code == 400, response.text
    assert says in response.json()["detail"]
    assert (await talk.read())["turns"] == []


async def test_bad_resume(client: httpx.AsyncClient, talk: Talk) -> None:
    ready = await open_talk(client, client_tools=[TOOL])
    turn = await ready.turn(script([call("t", "c1")], ["Done."]))
    answer = {"call_id": "c1", "tool_name": "t", "content": "x"}
    for responses, says in (
        ([], "waits for ['c1']"),
        ([answer | {"call_id": "c2"}], "waits for ['c1']"),
        ([answer, answer], "waits for ['c1']"),
        ([answer | {"tool_name": "u"}], "is of tool 't'"),
    ):
        response = await ready.resume(turn.turn_id, responses)
        assert response.status_code == 400
        assert says in response.json()["detail"]
    assert (await ready.resume(str(uuid4()), [answer])).status_code == 404
    several = await asyncio.gather(*(ready.resume(turn.turn_id, [answer]) for _ in range(6)))
    assert sorted(response.status_code for response in several) == [200, *[400] * 5]
    finished = await ready.resume(turn.turn_id, [answer])
    assert finished.status_code == 400
    assert "it is completed" in finished.json()["detail"]


async def test_turns_of_a_session_run_in_their_order(talk: Talk, fake: InstantModel) -> None:
    texts = [script([0.05, f"Answer {number}."]) for number in range(5)]
    tasks = []
    for text in texts:
        tasks.append(asyncio.create_task(talk.turn(text)))
        await asyncio.sleep(0.02)
    turns = [await task for task in tasks]
    assert [turn.output_message.content for turn in turns] == [f"Answer {number}." for number in range(5)]
    for earlier, later in zip(fake.requests, fake.requests[1:], strict=False):
        assert len(later.messages) == len(earlier.messages) + 2  # it has read the earlier answer
    stored = (await talk.read())["turns"]
    assert [turn["turn_id"] for turn in stored] == [turn.turn_id for turn in turns]


async def test_turn_waits_for_a_bounded_time(
    app: FastAPI, talk: Talk, stack: Stack, fake: InstantModel
) -> None:
    stack.turns._wait_s = 0.2
    running = asyncio.create_task(talk.turn(script([1.0, "Long."])))
    await fake.waiting.wait()
    late = await talk.say(script(["Late."]))
    assert late.status_code == 429
    assert late.headers["retry-after"]
    await running
    assert len((await talk.read())["turns"]) == 1


async def test_too_many_wait(talk: Talk, stack: Stack, fake: InstantModel) -> None:
    running = asyncio.create_task(talk.turn(script([0.8, "Long."])))
    await fake.waiting.wait()
    responses = await asyncio.gather(*(talk.say(script(["x"])) for _ in range(20)))
    assert sorted({response.status_code for response in responses}) == [200, 429]
    await running


async def test_client_that_leaves_frees_the_model_at_once(
    app: FastAPI, talk: Talk, fake: InstantModel
) -> None:
    body = {"messages": [{"role": "user", "content": script(["so far", 30.0, "never"])}], "stream": True}
    exchange = Exchange(app, "POST", f"{talk.url}/turn", body)
    await asyncio.wait_for(fake.waiting.wait(), 5)
    exchange.disconnect()
    await asyncio.wait_for(exchange.task, 5)
    turn = await _ended(talk)
    assert turn["steps"] == []
    assert "its client left" in turn["output_message"]["content"]
    assert (await talk.turn(script(["Back."]))).output_message.content == "Back."


async def test_client_that_leaves_lets_a_tool_finish(
    app: FastAPI, talk: Talk, local: LocalTools, fake: InstantModel
) -> None:
    text = script([call("wait", seconds=0.5)], ["never"])
    exchange = Exchange(app, "POST", f"{talk.url}/turn", {"messages": [{"role": "user", "content": text}]})
    await asyncio.wait_for(local.started.wait(), 5)
    exchange.disconnect()
    await asyncio.wait_for(exchange.task, 5)
    turn = await _ended(talk)
    assert [step["step_type"] for step in turn["steps"]] == ["inference", "tool_execution"]
    assert turn["steps"][1]["tool_responses"][0]["content"] == "waited"
    assert len(fake.requests) == 1


async def _ended(talk: Talk) -> dict[str, Any]:
    for _ in range(100):
        turn: dict[str, Any] = (await talk.read())["turns"][0]
        if turn.get("completed_at"):
            return turn
        await asyncio.sleep(0.05)
    raise AssertionError("the turn did not end")


async def test_waiting_client_that_leaves_is_forgotten(app: FastAPI, talk: Talk, fake: InstantModel) -> None:
    running = asyncio.create_task(talk.turn(script([0.6, "Long."])))
    await fake.waiting.wait()
    exchange = Exchange(app, "POST", f"{talk.url}/turn", {"messages": [{"role": "user", "content": "x"}]})
    await asyncio.sleep(0.2)
    exchange.disconnect()
    await asyncio.wait_for(exchange.task, 5)
    await running
    assert len((await talk.read())["turns"]) == 1


async def test_turns_end_with_the_server(
    settings: Settings, talk: Talk, stack: Stack, fake: InstantModel
) -> None:
    running = asyncio.create_task(talk.say(script([30.0, "never"])))
    await fake.waiting.wait()
    await stack.turns.close()
    response = await running
    assert response.status_code == 200
    assert "the server was stopped" in response.json()["output_message"]["content"]
    assert (await _ended(talk))["output_message"] == response.json()["output_message"]


async def test_running_turn_can_be_read(talk: Talk, fake: InstantModel) -> None:
    running = asyncio.create_task(talk.turn(script([call("echo", text="a")], [0.4, "Late."])))
    await fake.waiting.wait()
    turn = (await talk.read())["turns"][0]
    assert [step["step_type"] for step in turn["steps"]] == ["inference", "tool_execution"]
    assert "completed_at" not in turn
    assert json.dumps(turn["output_message"]["content"]) == '""'
    await running
