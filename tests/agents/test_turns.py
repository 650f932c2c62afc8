"""A turn: its steps, its events, what the model reads, and what is kept."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from stack.agents.metrics import DROPPED_TURNS
from stack.schemas.agents import InferenceStep, ToolExecutionStep
from tests.agents.conftest import Talk, open_talk
from tests.agents.instant import InstantModel, LocalTools, broken, call, script

CLIENT_TOOL = {
    "name": "get_weather",
    "description": "The weather",
    "parameters": [{"name": "city", "parameter_type": "string", "description": "Where", "required": True}],
}


def kinds(turn: Any) -> list[str]:
    return [step.step_type for step in turn.steps]


async def test_answer_without_tools(client: httpx.AsyncClient, fake: InstantModel) -> None:
    talk = await open_talk(client)
    turn = await talk.turn(script(["Hel", "lo."]))
    assert turn.output_message.content == "Hello."
    assert turn.output_message.stop_reason == "end_of_turn"
    assert kinds(turn) == ["inference"]
    assert turn.completed_at is not None
    assert turn.completed_at >= turn.started_at
    (request,) = fake.requests
    assert [message.role for message in request.messages] == ["system", "user"]
    assert request.tools is None
    assert (await talk.read())["turns"] == [turn.model_dump(mode="json")]


async def test_tool_and_answer(talk: Talk, fake: InstantModel, local: LocalTools) -> None:
    turn = await talk.turn(script([call("echo", text="hi")], ["It says hi."]))
    assert kinds(turn) == ["inference", "tool_execution", "inference"]
    step = turn.steps[1]
    assert isinstance(step, ToolExecutionStep)
    assert step.tool_responses[0].content == "hi"
    assert step.tool_responses[0].call_id == step.tool_calls[0].call_id
    assert step.tool_responses[0].metadata == {"document_ids": ["d"]}
    assert turn.output_message.content == "It says hi."
    assert [(name, arguments) for name, arguments, _ in local.calls] == [("echo", {"text": "hi"})]
    assert [message.role for message in fake.requests[1].messages] == ["system", "user", "assistant", "tool"]
    assert {tool.tool_name for tool in fake.requests[0].tools} >= {"echo", "wait"}


async def test_events_come_in_order(talk: Talk) -> None:
    events = await talk.stream(script([call("echo", text="hi")], ["It says", " hi."]))
    assert [(event.event_type, getattr(event, "step_type", None)) for event in events] == [
        ("turn_start", None),
        ("step_start", "inference"),
        ("step_progress", "inference"),
        ("step_complete", "inference"),
        ("step_start", "tool_execution"),
        ("step_progress", "tool_execution"),
        ("step_complete", "tool_execution"),
        ("step_start", "inference"),
        ("step_progress", "inference"),
        ("step_progress", "inference"),
        ("step_complete", "inference"),
        ("turn_complete", None),
    ]
    assert events[2].delta.tool_call.tool_name == "echo"
    assert [event.delta.text for event in events[8:10]] == ["It says", " hi."]
    assert len({event.step_id for event in events if hasattr(event, "step_id")}) == 3
    assert events[-1].turn.turn_id == events[0].turn_id
    stored = await talk.client.get(f"{talk.url}/turn/{events[0].turn_id}")
    assert stored.json() == events[-1].turn.model_dump(mode="json")
    for event in events:
        if event.event_type == "step_complete":
            step = await talk.client.get(f"{talk.url}/turn/{events[0].turn_id}/step/{event.step_id}")
            assert step.json() == {"step": event.step_details.model_dump(mode="json")}


async def test_calls_of_one_answer_run_at_once(talk: Talk, local: LocalTools) -> None:
    turn = await talk.turn(script([call("wait", seconds=0.2), call("wait", seconds=0.1)], ["Done."]))
    assert local.at_once == 2
    assert kinds(turn) == ["inference", "tool_execution", "tool_execution", "inference"]
    stored = (await talk.read())["turns"][0]
    assert [step["tool_calls"][0]["arguments"] for step in stored["steps"][1:3]] == [
        '{"seconds": 0.2}',
        '{"seconds": 0.1}',
    ]


async def test_failing_tool_is_a_response_and_the_turn_goes_on(talk: Talk, fake: InstantModel) -> None:
    turn = await talk.turn(script([call("fail"), call("nothing")], ["Sorry."]))
    first, second = turn.steps[1], turn.steps[2]
    assert isinstance(first, ToolExecutionStep)
    assert isinstance(second, ToolExecutionStep)
    assert first.tool_responses[0].content == "Error: it was not meant to be"
    assert "no tool 'nothing'" in str(second.tool_responses[0].content)
    assert turn.output_message.content == "Sorry."


async def test_repeated_call_is_stopped_with_an_answer(
    talk: Talk, fake: InstantModel, local: LocalTools
) -> None:
    turn = await talk.turn(script([call("echo", text="a")], [call("echo", text="a")], ["Enough."]))
    assert len(local.calls) == 1
    assert kinds(turn) == ["inference", "tool_execution", "inference", "inference"]
    assert turn.output_message.content == "Enough."
    assert fake.requests[-1].tool_config.tool_choice == "none"
    assert [message.role for message in fake.requests[-1].messages] == ["system", "user", "assistant", "tool"]


async def test_last_answer_is_asked_without_tools(
    client: httpx.AsyncClient, fake: InstantModel, local: LocalTools
) -> None:
    talk = await open_talk(client, toolgroups=["local"], max_infer_iters=3)
    calls = [[call("echo", text=str(number))] for number in range(9)]
    turn = await talk.turn(script(*calls, ["At last."]))
    assert len(fake.requests) == 3
    assert len(local.calls) == 2
    assert turn.output_message.content == "At last."


async def test_only_answer_may_be_a_call(client: httpx.AsyncClient, local: LocalTools) -> None:
    talk = await open_talk(client, toolgroups=["local"], max_infer_iters=1)
    turn = await talk.turn(script([call("echo", text="a")]))
    assert local.calls == []
    assert turn.output_message.stop_reason == "end_of_turn"  # the client does not run it either
    assert turn.output_message.tool_calls is not None


async def test_broken_call_is_asked_for_once_more(talk: Talk, fake: InstantModel, local: LocalTools) -> None:
    turn = await talk.turn(script([broken('{"name": "ech')], [call("echo", text="b")], ["Well."]))
    assert kinds(turn) == ["inference", "inference", "tool_execution", "inference"]
    assert fake.requests[1].tool_config.tool_choice == "required"
    assert "ech" in fake.requests[1].messages[-1].content
    assert len(local.calls) == 1
    again = await talk.turn(script([broken("{"), "x"], [broken("{{"), "y"]))
    assert kinds(again) == ["inference", "inference"]
    assert again.output_message.content == "{{y"


async def test_required_tool_is_required_once(
    client: httpx.AsyncClient, fake: InstantModel, local: LocalTools
) -> None:
    talk = await open_talk(client, toolgroups=["local"], tool_config={"tool_choice": "required"})
    await talk.turn(script([call("echo", text="a")], ["Done."]))
    assert [request.tool_config.tool_choice for request in fake.requests] == ["required", "auto"]
    await talk.turn(script(["No."]), tool_config={"tool_choice": "none"})
    assert fake.requests[-1].tool_config.tool_choice == "none"


async def test_tools_of_a_turn_are_added(
    client: httpx.AsyncClient, fake: InstantModel, local: LocalTools
) -> None:
    talk = await open_talk(client)
    assert (await talk.turn(script(["No tools."]))).output_message.content == "No tools."
    turn = await talk.turn(script([call("echo", text="a")], ["One."]), toolgroups=["local/echo"])
    assert kinds(turn) == ["inference", "tool_execution", "inference"]
    assert [tool.tool_name for tool in fake.requests[-1].tools] == ["echo"]


async def test_client_tool_and_resume(
    client: httpx.AsyncClient, fake: InstantModel, local: LocalTools
) -> None:
    talk = await open_talk(client, toolgroups=["local"], client_tools=[CLIENT_TOOL])
    events = await talk.stream(
        script(
            [call("echo", "c1", text="a"), call("get_weather", "c2", city="Bern")],
            [call("get_weather", "c3", city="Rom")],
            ["Warm."],
        )
    )
    assert events[-1].event_type == "turn_awaiting_input"
    turn = events[-1].turn
    assert turn.completed_at is None
    assert [each.call_id for each in turn.output_message.tool_calls] == ["c2"]
    assert turn.output_message.stop_reason == "end_of_message"
    assert kinds(turn) == ["inference", "tool_execution"]
    resumed = await talk.resume(
        turn.turn_id, [{"call_id": "c2", "tool_name": "get_weather", "content": "12 degrees"}]
    )
    assert resumed.status_code == 200
    assert resumed.json()["turn_id"] == turn.turn_id
    assert [each["call_id"] for each in resumed.json()["output_message"]["tool_calls"]] == ["c3"]
    last = await talk.resume(
        turn.turn_id, [{"call_id": "c3", "tool_name": "get_weather", "content": "20 degrees"}], stream=True
    )
    assert "turn_complete" in last.text
    stored = (await talk.read())["turns"]
    assert len(stored) == 1
    assert [step["step_type"] for step in stored[0]["steps"]] == [
        "inference", "tool_execution", "tool_execution", "inference", "tool_execution", "inference",
    ]  # fmt: skip
    assert stored[0]["output_message"]["content"] == "Warm."
    contents = [message.content for message in fake.requests[-1].messages if message.role == "tool"]
    assert contents == ["a", "12 degrees", "20 degrees"]


async def test_react_answer_is_resumed(client: httpx.AsyncClient, fake: InstantModel) -> None:
    """As llama-stack-client's ReActAgent does, which reads the call out of the answer itself."""
    talk = await open_talk(client, client_tools=[CLIENT_TOOL])
    action = '{"thought": "t", "action": {"tool_name": "get_weather", "tool_params": []}, "answer": null}'
    turn = await talk.turn(script([action], ["Sunny."]))
    assert turn.completed_at is not None
    response = {"call_id": "mine", "tool_name": "get_weather", "content": "sun"}
    wrong = await talk.resume(turn.turn_id, [response | {"tool_name": "other"}])
    assert wrong.status_code == 400
    resumed = await talk.resume(turn.turn_id, [response])
    assert resumed.json()["output_message"]["content"] == "Sunny."
    assert [message.role for message in fake.requests[-1].messages] == ["system", "user", "assistant", "tool"]
    again = await talk.resume(turn.turn_id, [response])
    assert again.status_code == 400


async def test_earlier_turns_are_remembered(talk: Talk, fake: InstantModel) -> None:
    await talk.turn(script([call("echo", text="one")], ["First."]))
    await talk.turn(script(["Second."]))
    await talk.turn("and now?")
    said = [(message.role, message.content) for message in fake.requests[-1].messages]
    assert [role for role, _ in said] == [
        "system", "user", "assistant", "tool", "assistant", "user", "assistant", "user",
    ]  # fmt: skip
    assert [text for role, text in said if role == "assistant"] == ["", "First.", "Second."]


async def test_abandoned_client_tool_is_closed_by_the_next_turn(
    client: httpx.AsyncClient, fake: InstantModel
) -> None:
    talk = await open_talk(client, client_tools=[CLIENT_TOOL])
    first = await talk.turn(script([call("get_weather", "c1", city="Bern")], ["x"]))
    second = await talk.turn(script(["Never mind."]))
    assert second.output_message.content == "Never mind."
    stored = (await talk.read())["turns"][0]
    assert stored["completed_at"] is not None
    assert "a later turn began" in stored["output_message"]["content"]
    late = await talk.resume(first.turn_id, [{"call_id": "c1", "tool_name": "get_weather", "content": "x"}])
    assert late.status_code == 400
    assert [message.role for message in fake.requests[-1].messages] == ["system", "user", "user"]


async def test_pictures_and_files_are_attachments(talk: Talk, fake: InstantModel) -> None:
    turn = await talk.turn(script([call("picture")], ["Drawn."]))
    assert turn.output_attachments is not None
    assert [attachment.mime_type for attachment in turn.output_attachments] == ["image/png", "text/csv"]
    response = turn.steps[1].tool_responses[0]  # type: ignore[union-attr]
    assert response.content == "drawn\n[1 image shown to the user]"
    assert response.metadata == {"n": 1}
    assert fake.requests[-1].messages[-1].content == response.content


async def test_long_tool_response_is_cut(talk: Talk) -> None:
    turn = await talk.turn(script([call("big", chars=3_000_000)], ["Much."]))
    content = turn.steps[1].tool_responses[0].content  # type: ignore[union-attr]
    assert isinstance(content, str)
    assert len(content) < 110_000
    assert content.endswith("has 3000000 characters]")


async def test_context_drops_the_oldest_turns_first(
    talk: Talk, fake: InstantModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: dict[str, float] = {}
    meter = talk_meter(monkeypatch, counted)
    fake.limit = 8_000  # characters, that is 2,000 tokens
    for number in range(12):
        turn = await talk.turn(script([f"Answer {number}. " + "word " * 200]))
        assert turn.output_message.content.startswith(f"Answer {number}.")  # type: ignore[union-attr]
    said = [message.content for message in fake.requests[-1].messages]
    assert "Be brief." in said[0]
    assert not any("Answer 0." in str(content) for content in said)
    assert any("Answer 10." in str(content) for content in said)
    assert counted[DROPPED_TURNS] > 0
    assert meter


def talk_meter(monkeypatch: pytest.MonkeyPatch, counted: dict[str, float]) -> bool:
    from stack.engine.base import NoMeter

    def count(self: NoMeter, name: str, value: float = 1.0) -> None:
        counted[name] = counted.get(name, 0) + value

    monkeypatch.setattr(NoMeter, "count", count)
    return True


async def test_tool_responses_are_shortened_to_fit(talk: Talk, fake: InstantModel) -> None:
    fake.limit = 8_000
    turn = await talk.turn(script([call("big", chars=50_000)], ["Fits."]))
    assert turn.output_message.content == "Fits."
    assert len(fake.requests[-1].messages[-1].content) < 8_000
    stored = turn.steps[1].tool_responses[0].content  # type: ignore[union-attr]
    assert len(str(stored)) == 50_000  # only the prompt is cut


async def test_own_message_too_long_is_said_and_forgotten(talk: Talk, fake: InstantModel) -> None:
    fake.limit = 8_000
    response = await talk.say("long " * 4000)
    assert response.status_code == 400
    assert response.json()["title"] == "Context Too Long"
    assert (await talk.turn(script(["Fine."]))).output_message.content == "Fine."
    first = (await talk.read())["turns"][0]
    assert "the model takes" in first["output_message"]["content"]
    assert first["completed_at"] is not None


async def test_failing_model_closes_the_turn(talk: Talk) -> None:
    response = await talk.say(script([call("echo", text="kept")], [{"error": "no more"}]))
    assert response.status_code == 400
    assert response.json()["detail"] == "no more"
    events = await talk.say(script([{"error": "no more"}]), stream=True)
    assert events.status_code == 200
    assert events.text.rstrip().endswith('data: {"error": {"message": "no more"}}')
    stored = (await talk.read())["turns"]
    assert [step["step_type"] for step in stored[0]["steps"]] == ["inference", "tool_execution"]
    assert "no more" in stored[0]["output_message"]["content"]
    assert all(turn["completed_at"] for turn in stored)


async def test_inference_step_is_what_the_model_said(talk: Talk) -> None:
    turn = await talk.turn(script(["a", "b"]))
    step = turn.steps[0]
    assert isinstance(step, InferenceStep)
    assert step.model_response == turn.output_message
    assert step.turn_id == turn.turn_id
