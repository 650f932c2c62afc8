"""Shields around a turn: what they stop is not told, not kept, and not remembered."""

from __future__ import annotations

from typing import Any

import httpx

from stack.schemas.agents import ShieldCallStep
from tests.agents.conftest import open_talk
from tests.agents.instant import InstantModel, LocalTools, call, script

CARD = "4111 1111 1111 1111"


async def register(client: httpx.AsyncClient, shield_id: str, pattern: str, level: str = "error") -> None:
    patterns = [{"name": shield_id, "pattern": pattern, "level": level, "message": f"not {shield_id}"}]
    body = {"shield_id": shield_id, "provider_id": "regex", "params": {"patterns": patterns}}
    response = await client.post("/v1/shields", json=body)
    assert response.status_code == 200, response.text


async def test_input_violation_ends_the_turn(client: httpx.AsyncClient, fake: InstantModel) -> None:
    talk = await open_talk(client, input_shields=["pii", "code-scanner"])
    events = await talk.stream(f"my card is {CARD}")
    assert [event.event_type for event in events] == [
        "turn_start", "step_start", "step_complete", "step_start", "step_complete", "turn_complete",
    ]  # fmt: skip
    assert [event.metadata for event in events if event.event_type == "step_start"] == [
        {"touchpoint": "user-input", "shield_id": "pii"},
        {"touchpoint": "user-input", "shield_id": "code-scanner"},
    ]
    turn = events[-1].turn
    first, second = turn.steps
    assert isinstance(first, ShieldCallStep)
    assert isinstance(second, ShieldCallStep)
    assert first.violation is not None
    assert second.violation is None
    assert turn.output_message.content == first.violation.user_message
    assert fake.requests == []


async def test_output_violation_is_not_told_and_not_kept(
    client: httpx.AsyncClient, fake: InstantModel
) -> None:
    await register(client, "secret", "hunter2")
    talk = await open_talk(client, output_shields=["secret"])
    events = await talk.stream(script(["The word is ", "hunter2."]))
    assert "step_progress" not in [event.event_type for event in events]
    told = [event.step_details for event in events if event.event_type == "step_complete"]
    assert [step.step_type for step in told] == ["inference", "shield_call"]
    assert "hunter2." not in str(told)
    turn = events[-1].turn
    assert turn.steps == told
    assert turn.output_message.content == "not secret"
    stored = (await talk.read())["turns"][0]
    assert "hunter2." not in str(stored["steps"])
    await talk.turn(script(["Fine."]))
    assert all(
        "hunter2." not in str(message)
        for message in fake.requests[-1].messages
        if message.role == "assistant"
    )


async def test_output_is_told_once_it_has_passed(client: httpx.AsyncClient) -> None:
    await register(client, "secret", "hunter2")
    talk = await open_talk(client, output_shields=["secret"])
    events = await talk.stream(script(["All", " well."]))
    assert [event.event_type for event in events] == [
        "turn_start", "step_start", "step_progress", "step_progress", "step_complete",
        "step_start", "step_complete", "turn_complete",
    ]  # fmt: skip
    assert events[5].metadata == {"touchpoint": "assistant-output", "shield_id": "secret"}


async def test_every_answer_is_looked_at(client: httpx.AsyncClient, local: LocalTools) -> None:
    await register(client, "secret", "hunter2")
    talk = await open_talk(client, toolgroups=["local"], output_shields=["secret"])
    turn = await talk.turn(script(["I will say hunter2", call("echo", text="x")], ["Done."]))
    assert local.calls == []
    assert turn.output_message.content == "not secret"


async def test_warning_does_not_end_the_turn(client: httpx.AsyncClient) -> None:
    await register(client, "mild", "hunter2", level="warn")
    talk = await open_talk(client, input_shields=["mild"])
    turn = await talk.turn(script(["hunter2"]))
    assert [step.step_type for step in turn.steps] == ["shield_call", "inference"]
    assert turn.steps[0].violation.violation_level == "warn"  # type: ignore[union-attr]
    assert turn.output_message.content == "hunter2"


async def test_shield_that_cannot_run_fails_the_turn(client: httpx.AsyncClient, fake: InstantModel) -> None:
    """It is never passed in silence."""
    body: dict[str, Any] = {"shield_id": "guard", "provider_id": "llama-guard", "provider_shield_id": "tiny"}
    assert (await client.post("/v1/shields", json=body)).status_code == 200
    talk = await open_talk(client, input_shields=["guard"])
    response = await talk.say(script(["neither safe nor unsafe"]))
    assert response.status_code >= 500, response.text
    stored = (await talk.read())["turns"][0]
    assert stored["steps"] == []
    assert "stopped" in stored["output_message"]["content"]
