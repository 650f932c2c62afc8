"""What a turn leaves in its trace."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from stack.settings import Settings
from stack.telemetry.conversations import INPUT, OUTPUT
from stack.telemetry.learning import message_rows
from tests.agents.conftest import Talk, open_talk
from tests.agents.instant import LocalTools, call, script
from tests.api.test_tracing import spans_of


def named(spans: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [span for span in spans if span["name"] == name]


async def test_a_turn_with_its_steps(talk: Talk) -> None:
    answer = await talk.say(script([call("echo", text="hi")], ["It says hi."]))
    turn = answer.json()
    spans = await spans_of(talk.client, answer.headers["x-trace-id"], 8)
    by_id = {span["span_id"]: span for span in spans}
    (root,) = (span for span in spans if "parent_span_id" not in span)
    (agent,) = named(spans, "invoke_agent")
    assert agent["parent_span_id"] == root["span_id"]
    ids = {"session_id": talk.session_id, "turn_id": turn["turn_id"]}
    assert agent["attributes"] == {"gen_ai.operation.name": "invoke_agent"} | ids
    steps = named(spans, "step inference") + named(spans, "step tool_execution")
    assert {span["parent_span_id"] for span in steps} == {agent["span_id"]}
    assert {span["attributes"]["step_id"] for span in steps} == {step["step_id"] for step in turn["steps"]}
    (tool,) = named(spans, "execute_tool echo")
    assert by_id[tool["parent_span_id"]]["name"] == "step tool_execution"
    assert tool["attributes"].items() >= {"gen_ai.tool.name": "echo", "stack.toolgroup_id": "local"}.items()
    chats = named(spans, "chat tiny")
    assert len(chats) == 2
    for chat in chats:
        assert by_id[chat["parent_span_id"]]["name"] == "step inference"
        assert chat["attributes"].items() >= ids.items()
        assert INPUT not in chat["attributes"]


async def test_shields_and_a_failed_model(client: httpx.AsyncClient) -> None:
    talk = await open_talk(client, input_shields=["pii"])
    answer = await talk.say("my card is 4111 1111 1111 1111")
    spans = await spans_of(client, answer.headers["x-trace-id"], 3)
    (shield,) = named(spans, "shield pii")
    assert shield["attributes"]["stack.violation"] is True
    assert "4111" not in str(spans)


class TestWithContent:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"telemetry_content": True})

    async def test_a_turn_is_a_row_to_learn_from(self, talk: Talk, local: LocalTools) -> None:
        asked = script([call("echo", text="hi")], ["It says hi."])
        answer = await talk.say(asked)
        assert local.calls
        spans = await spans_of(talk.client, answer.headers["x-trace-id"], 8)
        rows = [{**span, INPUT: None, OUTPUT: None, **span["attributes"]} for span in spans]
        (row,) = message_rows(rows)
        system, user, called, response, said = row["messages"]
        assert system["role"] == "system"
        assert user == {"role": "user", "content": asked}
        assert called["tool_calls"][0]["arguments"] == {"text": "hi"}
        assert (response["role"], response["content"]) == ("tool", "hi")
        assert response["call_id"] == called["tool_calls"][0]["call_id"]
        assert said == {"role": "assistant", "content": "It says hi."}
