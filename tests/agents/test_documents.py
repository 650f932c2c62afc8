"""Documents of a turn, in the message or the code interpreter's folder; and what code leaves for later."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from stack.context import Stack
from stack.sandbox.sandbox import Sandbox
from stack.settings import Settings
from tests.agents.conftest import open_talk
from tests.agents.instant import InstantModel, call, script

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()


def text(content: str, mime_type: str = "text/plain") -> dict[str, Any]:
    return {"content": content, "mime_type": mime_type}


async def test_documents_go_into_the_message(client: httpx.AsyncClient, fake: InstantModel) -> None:
    talk = await open_talk(client)
    html = text("<html><body><main><h1>Llamas</h1><p>They eat hay.</p></main></body></html>", "text/html")
    await talk.turn(script(["Read."]), documents=[text("First."), html])
    context = fake.requests[-1].messages[-1].context
    assert (
        context == "Document document-1.txt:\nFirst.\n\nDocument document-2.html:\n# Llamas\n\nThey eat hay."
    )
    stored = (await talk.read())["turns"][0]
    assert stored["input_messages"][0]["context"] == context


async def test_image_goes_along(client: httpx.AsyncClient, fake: InstantModel) -> None:
    talk = await open_talk(client)
    image = {"content": {"type": "image", "image": {"data": PNG}}, "mime_type": "image/png"}
    await talk.turn(script(["Seen."]), documents=[image])
    assert [item.type for item in fake.requests[-1].messages[-1].context] == ["image"]


async def test_too_much_for_a_message(client: httpx.AsyncClient) -> None:
    talk = await open_talk(client)
    response = await talk.say("Read.", documents=[text("word " * 50_000)])
    assert response.status_code == 400
    assert "builtin::rag" in response.json()["detail"]
    many = await talk.say("Read.", documents=[text("x")] * 65)
    assert many.status_code == 400


async def test_uploaded_file_is_read(client: httpx.AsyncClient, stack: Stack, fake: InstantModel) -> None:
    body = {"bucket": "b", "key": "notes.txt", "mime_type": "text/plain", "size": 5}
    upload = (await client.post("/v1/files", json=body)).json()
    url = httpx.URL(upload["url"])
    stored = await client.post(url.raw_path.decode(), content=b"notes")
    assert stored.status_code == 200, stored.text
    talk = await open_talk(client)
    document = {"content": {"uri": stored.json()["url"]}, "mime_type": "text/plain"}
    await talk.turn(script(["Read."]), documents=[document])
    assert "notes" in fake.requests[-1].messages[-1].context


async def test_code_works_in_a_folder_of_the_session(
    client: httpx.AsyncClient, settings: Settings, fake: InstantModel
) -> None:
    if (reason := await Sandbox(settings).unavailable()) is not None:
        pytest.skip(reason)
    talk = await open_talk(client, toolgroups=["builtin::code_interpreter"])
    code = "data = open('document-1.csv').read()\nopen('sum.txt', 'w').write('3')\nprint(data)"
    turn = await talk.turn(
        script([call("code_interpreter", code=code)], ["Summed."]),
        documents=[text("a,b\n1,2\n", "text/csv")],
    )
    assert "document-1.csv (text/csv, 8 bytes)" in fake.requests[0].messages[-1].context
    assert "1,2" in turn.steps[1].tool_responses[0].content  # type: ignore[union-attr]
    assert turn.output_attachments is not None
    assert [attachment.mime_type for attachment in turn.output_attachments] == ["text/plain"]
    later = await talk.turn(
        script([call("code_interpreter", code="print(open('sum.txt').read() * 2)")], ["Doubled."])
    )
    assert "33" in later.steps[1].tool_responses[0].content  # type: ignore[union-attr]
    other = await open_talk(client, toolgroups=["builtin::code_interpreter"])
    turn = await other.turn(script([call("code_interpreter", code="import os; print(os.listdir())")], ["x"]))
    assert "sum.txt" not in turn.steps[1].tool_responses[0].content  # type: ignore[union-attr]
