"""Kill a replica in the middle of a turn, and look at what another one finds."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.agents.instant import call, script
from tests.agents.server import Replica

POINTS: dict[str, tuple[str, Callable[[dict[str, Any]], bool]]] = {
    "mid-inference": (
        script([call("echo", text="kept")], [60.0, "never"]),
        lambda event: event["event_type"] == "step_start" and event["step_type"] == "inference",
    ),
    "mid-tool": (
        script([call("echo", text="kept")], [call("wait", seconds=60)], ["never"]),
        lambda event: event["event_type"] == "step_progress" and "wait" in json.dumps(event),
    ),
    "between steps": (
        script([call("echo", text="kept")], [call("echo", text="b")], [call("echo", text="c")], [60.0]),
        lambda event: event["event_type"] == "step_complete",
    ),
    "while streaming": (
        script([call("echo", text="kept")], [*["word "] * 20, 60.0, "never"]),
        lambda event: event["event_type"] == "step_progress" and event["delta"]["type"] == "text",
    ),
}
"""What the model is told to do, and the events of which the second or a later one is the moment to kill."""


@dataclass(slots=True)
class Outcome:
    finished: list[str] = field(default_factory=list)  # ids of the steps that the client saw completed
    turn_id: str = ""
    stored: dict[str, Any] = field(default_factory=dict)  # the turn as another replica has it
    next_status: int = 0
    next_s: float = 0.0  # how long the session's next turn took


def kill_at(point: str, victim: Replica, victim_url: str, other_url: str, agent_id: str) -> Outcome:
    """Kill the victim at the point of a turn in a new session; then go on with the other replica."""
    text, is_point = POINTS[point]
    outcome, seen = Outcome(), 0
    with httpx.Client(base_url=victim_url, timeout=30) as client:
        session = client.post(f"/v1/agents/{agent_id}/session", json={"session_name": point})
        url = f"/v1/agents/{agent_id}/session/{session.json()['session_id']}"
        body = {"messages": [{"role": "user", "content": text}], "stream": True}
        try:
            with client.stream("POST", f"{url}/turn", json=body) as response:
                for line in response.iter_lines():
                    if not line.startswith("data: "):
                        continue
                    event = json.loads(line.removeprefix("data: "))["event"]["payload"]
                    outcome.turn_id = event.get("turn_id", outcome.turn_id)
                    if event["event_type"] == "step_complete":
                        outcome.finished.append(event["step_id"])
                    seen += bool(is_point(event))
                    if seen >= 2 or (point in ("mid-tool",) and seen):
                        threading.Timer(0.02, victim.kill).start()
                        seen = -1_000_000
        except httpx.HTTPError:
            pass
    victim.kill()
    with httpx.Client(base_url=other_url, timeout=30) as client:
        body = {"messages": [{"role": "user", "content": script(["Going on."])}]}
        response = client.post(f"{url}/turn", json=body)
        outcome.next_status, outcome.next_s = response.status_code, response.elapsed.total_seconds()
        outcome.stored = client.get(f"{url}/turn/{outcome.turn_id}").json()
    return outcome


def problems(outcome: Outcome) -> list[str]:
    """What is wrong with it."""
    found = []
    steps = [step["step_id"] for step in outcome.stored["steps"]]
    if lost := set(outcome.finished) - set(steps):
        found.append(f"lost {len(lost)} finished steps")
    if len(steps) != len(set(steps)):
        found.append("a step is there twice")
    calls = [json.dumps(step.get("tool_calls")) for step in outcome.stored["steps"] if "tool_calls" in step]
    if len(calls) != len(set(calls)):
        found.append("a call was made twice")
    if not outcome.finished:
        found.append("nothing was finished before the kill, so nothing was tested")
    if "completed_at" not in outcome.stored:
        found.append("the turn is left hanging")
    if "process that ran it ended" not in json.dumps(outcome.stored["output_message"]):
        found.append("the turn does not say why it ended")
    if outcome.next_status != 200:
        found.append(f"the session's next turn is answered {outcome.next_status}")
    return found


def new_agent(url: str) -> str:
    config = {"model": "tiny", "instructions": "", "toolgroups": ["local"]}
    response = httpx.post(f"{url}/v1/agents", json={"agent_config": config}, timeout=30)
    agent_id: str = response.json()["agent_id"]
    return agent_id
