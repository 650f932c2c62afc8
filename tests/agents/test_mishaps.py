"""What goes wrong around a turn leaves its session usable."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from stack.agents import run as run_module
from stack.agents.documents import _named, _unmistakable
from stack.agents.records import Records
from stack.context import Stack
from stack.errors import NotReady
from stack.schemas.agents import CreateAgentTurnRequest, Document
from stack.schemas.common import URL
from stack.schemas.tools import ToolInvocationResult
from tests.agents.conftest import Talk, open_talk
from tests.agents.instant import InstantModel, LocalTools, call, script
from tests.api.asgi import Exchange

TOOL = {"name": "t", "parameters": []}
ANSWER = {"call_id": "c1", "tool_name": "t", "content": "x"}


def failing(times: int, work: Any) -> Any:
    """`work`, but at first the database is away."""
    left = [times]

    async def maybe(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise NotReady("the database cannot be reached; try again")
        return await work(*args, **kwargs)

    return maybe


async def test_resume_that_cannot_begin_may_be_tried_again(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = await open_talk(client, client_tools=[TOOL])
    await talk.turn(script(["Before."]))
    turn = await talk.turn(script([call("t", "c1")], ["Done."]))
    monkeypatch.setattr(Records, "remembered", failing(1, Records.remembered))
    assert (await talk.resume(turn.turn_id, [ANSWER])).status_code == 503
    again = await talk.resume(turn.turn_id, [ANSWER])
    assert again.status_code == 200, again.text
    assert again.json()["output_message"]["content"] == "Done."


async def test_turn_whose_end_cannot_be_written_is_ended_later(
    talk: Talk, stack: Stack, fake: InstantModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "RETRIES_S", (0.0, 0.01))
    commit = Records.commit
    monkeypatch.setattr(Records, "commit", failing(3, None))
    assert (await talk.say(script(["Lost."]))).status_code == 503
    monkeypatch.setattr(Records, "commit", commit)
    assert (await talk.turn(script(["Next."]))).output_message.content == "Next."
    first = (await talk.read())["turns"][0]
    assert "could not be written" in first["output_message"]["content"]


async def test_turn_that_gave_up_waiting_does_not_bar_a_resume(
    client: httpx.AsyncClient, stack: Stack, fake: InstantModel
) -> None:
    talk = await open_talk(client, client_tools=[TOOL])
    stack.turns._wait_s = 0.1
    running = asyncio.create_task(talk.turn(script([1.5, call("t", "c1")], ["Done."])))
    await fake.waiting.wait()
    assert (await talk.say(script(["Late."]))).status_code == 429
    turn = await running
    assert (await talk.resume(turn.turn_id, [ANSWER])).status_code == 200


async def test_bad_turn_does_not_close_one_that_waits(client: httpx.AsyncClient) -> None:
    talk = await open_talk(client, client_tools=[TOOL])
    turn = await talk.turn(script([call("t", "c1")], ["Done."]))
    assert (await talk.say("x", toolgroups=["none"])).status_code == 400
    assert (await talk.resume(turn.turn_id, [ANSWER])).status_code == 200


async def test_same_resume_twice_with_a_later_call_between(
    client: httpx.AsyncClient, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one has read the turn before the first one went on with it."""
    talk = await open_talk(client, client_tools=[TOOL])
    turn = await talk.turn(script([call("t", "c1")], [call("t", "c2", again=1)], ["Done."]))
    prepare, gate = stack.turns._prepare, asyncio.Event()

    async def slowly(*args: Any) -> Any:
        monkeypatch.setattr(stack.turns, "_prepare", prepare)
        await gate.wait()
        return await prepare(*args)

    monkeypatch.setattr(stack.turns, "_prepare", slowly)
    late = asyncio.create_task(talk.resume(turn.turn_id, [ANSWER]))
    await asyncio.sleep(0.1)
    assert (await talk.resume(turn.turn_id, [ANSWER])).status_code == 200
    gate.set()
    assert (await late).status_code == 400
    assert (await talk.resume(turn.turn_id, [ANSWER | {"call_id": "c2"}])).status_code == 200


async def test_half_characters_of_tools_are_replaced(
    talk: Talk, local: LocalTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: Any) -> ToolInvocationResult:
        return ToolInvocationResult.model_construct(
            content="a\ud83d", metadata={"b": "\ud83d"}, error_message=None, error_code=None
        )

    monkeypatch.setattr(local, "_do", broken)
    turn = await talk.turn(script([call("echo", text="x")], ["Fine."]))
    assert turn.steps[1].tool_responses[0].content == "a?"  # type: ignore[union-attr]


async def test_tool_that_breaks_down_is_a_response(
    talk: Talk, local: LocalTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: Any) -> ToolInvocationResult:
        raise RuntimeError("secret")

    monkeypatch.setattr(local, "_do", broken)
    turn = await talk.turn(script([call("echo", text="x")], ["Fine."]))
    assert turn.steps[1].tool_responses[0].content == "Error: the tool failed"  # type: ignore[union-attr]


async def test_refused_input_is_not_read_later(client: httpx.AsyncClient, fake: InstantModel) -> None:
    talk = await open_talk(client, input_shields=["pii"])
    await talk.turn("my card is 4111 1111 1111 1111")
    await talk.turn("go on with what I said")
    assert "4111" not in str(fake.requests[-1].messages)


async def test_slow_documents_do_not_change_the_order(
    talk: Talk, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = stack.turns._services.documents.place

    async def slowly(*args: Any) -> Any:
        if args[2]:
            await asyncio.sleep(0.3)
        return await place(*args)

    monkeypatch.setattr(stack.turns._services.documents, "place", slowly)
    documents = [{"content": "text", "mime_type": "text/plain"}]
    first = asyncio.create_task(talk.turn(script(["First."]), documents=documents))
    await asyncio.sleep(0.1)
    await talk.turn(script(["Second."]))
    await first
    said = [turn["output_message"]["content"] for turn in (await talk.read())["turns"]]
    assert said == ["First.", "Second."]


async def test_client_that_does_not_read_is_given_up(
    talk: Talk, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "MAX_STALL_S", 0.1)
    text = script([str(number) for number in range(400)])
    request = CreateAgentTurnRequest.model_validate(
        {"messages": [{"role": "user", "content": text}], "stream": True}
    )
    run = await stack.turns.create(talk.agent_id, talk.session_id, request, {})
    await asyncio.wait_for(run.task, 5)
    turn = (await talk.read())["turns"][0]
    assert "does not read" in turn["output_message"]["content"]


async def test_run_that_is_stopped_before_it_begins_ends(talk: Talk, stack: Stack) -> None:
    request = CreateAgentTurnRequest.model_validate(
        {"messages": [{"role": "user", "content": script(["x"])}]}
    )
    run = await stack.turns.create(talk.agent_id, talk.session_id, request, {})
    run.stop("the test says so")
    turn = await asyncio.wait_for(run.turn(), 5)
    assert "the test says so" in str(turn.output_message.content)


async def test_client_that_leaves_while_a_turn_begins(app: FastAPI, talk: Talk, stack: Stack) -> None:
    """Whatever the moment, the session stays usable."""
    for delay_ms in range(0, 24, 2):
        body = {"messages": [{"role": "user", "content": script([0.02, "x"])}]}
        exchange = Exchange(app, "POST", f"{talk.url}/turn", body)
        await asyncio.sleep(delay_ms / 1000)
        exchange.task.cancel()
        await asyncio.wait([exchange.task], timeout=5)
    stack.turns._wait_s = 5
    assert (await talk.turn(script(["Still here."]))).output_message.content == "Still here."


def test_documents_have_names_of_their_own() -> None:
    urls = ["http://a/3-x.txt", "http://a/x.txt", "http://b/x.txt", "http://c/"]
    documents = [Document(content=URL(uri=url), mime_type="text/plain") for url in urls]
    named = _named(documents)
    assert len({document.document_id for document in named}) == 4
    assert named[3].document_id == "document-4.txt"
    one, two = (_named([Document(content=text, mime_type="text/plain")])[0] for text in ("a", "b"))
    assert one.document_id == two.document_id
    assert _unmistakable(one).document_id != _unmistakable(two).document_id
    assert _unmistakable(one) == _unmistakable(one)
