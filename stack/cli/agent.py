"""`stack agent`: an agent from a YAML file, its steps shown as they happen."""

from __future__ import annotations

import base64
import contextlib
import json
import mimetypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stack.cli.chat import converse, first_llm
from stack.cli.client import DEFAULT_URL, Client, Url
from stack.cli.problems import CliError

if TYPE_CHECKING:
    from stack.cli.agent_file import AgentFile

SHOWN = 300  # characters of a tool's response


def agent(
    file: Annotated[Path, typer.Argument(help="The agent's YAML file.", show_default=False)],
    message: Annotated[
        str | None, typer.Argument(help="Say this and end; default: a talk.", show_default=False)
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="A folder for the files that tools give back.", show_default=False)
    ] = None,
    keep: Annotated[bool, typer.Option(help="Leave the agent on the server, and print its id.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Run an agent with tools and shields on a running server.

    Answers go to stdout, steps to stderr. What is piped in is one message.

    \b
    A file, all of it optional (docs/agents.md has every field):
      model: smollm2-135m
      instructions: You help with code.
      toolgroups: [builtin::code_interpreter]
      input_shields: [pii]
      documents: [data.csv]

    \b
    Examples:
      stack agent agent.yaml
      stack agent agent.yaml "What is the mean of the second column?"
      stack agent agent.yaml "Plot it." --save plots
    """
    from stack.cli.agent_file import read

    wanted = read(file)
    with Client(url) as client, _created(client, wanted, keep) as agent_id:
        talk = Talk(client, agent_id, file.stem, wanted.attached(file.parent), save)
        if message is not None:
            talk.say(message)
        elif sys.stdin.isatty():
            converse(talk)
        else:
            text = sys.stdin.read().strip()
            if not text:
                raise CliError('nothing was piped in; write e.g.: stack agent agent.yaml "Hello"')
            talk.say(text)


@contextlib.contextmanager
def _created(client: Client, wanted: AgentFile, keep: bool) -> Iterator[str]:
    """An agent on the server, deleted at the end unless it is to be kept."""
    for name, endpoint in wanted.mcp_servers.items():
        body = {"toolgroup_id": name, "provider_id": "model-context-protocol"}
        client.post("/v1/toolgroups", {**body, "mcp_endpoint": {"uri": endpoint}})
    config = wanted.config(wanted.model or first_llm(client))
    agent_id = client.post("/v1/agents", {"agent_config": config})["agent_id"]
    try:
        yield agent_id
    finally:
        if keep:
            typer.secho(f"agent {agent_id} is kept", dim=True, err=True)
        else:
            client.delete(f"/v1/agents/{agent_id}")


class Talk:
    """A session with an agent. The documents go with its first message."""

    def __init__(
        self, client: Client, agent_id: str, name: str, documents: list[dict[str, Any]], save: Path | None
    ) -> None:
        self.name = name
        self._client, self._agent_id, self._save = client, agent_id, save
        self._documents = documents
        self.reset()

    def reset(self) -> None:
        """A new session."""
        body = {"session_name": f"stack agent {self.name}"}
        session = self._client.post(f"/v1/agents/{self._agent_id}/session", body)
        self._url = f"/v1/agents/{self._agent_id}/session/{session['session_id']}"
        self._unsent = self._documents

    def say(self, text: str) -> None:
        """Send a message and show the turn as it happens. Ctrl-C stops it."""
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "stream": True}
        if self._unsent:
            body["documents"] = self._unsent
        events = self._client.events(f"{self._url}/turn", body)
        shown = _Shown()
        with contextlib.suppress(KeyboardInterrupt), contextlib.closing(events):
            for event in events:
                self._unsent = []
                shown.show(event["event"]["payload"])
        shown.end_line()
        for number, attachment in enumerate(shown.attachments, start=1):
            self._attachment(number, attachment)

    def _attachment(self, number: int, attachment: dict[str, Any]) -> None:
        kind, content = attachment["mime_type"], _bytes(attachment["content"])
        if self._save is None or content is None:
            _note("file", f"{kind}; --save FOLDER keeps it")
            return
        self._save.mkdir(parents=True, exist_ok=True)
        ending = mimetypes.guess_extension(kind) or ".bin"
        path = next(
            path
            for n in range(number, 10_000)
            if not (path := self._save / f"{self.name}-{n}{ending}").exists()
        )
        path.write_bytes(content)
        _note("file", str(path))


class _Shown:
    """Writes what happens in a turn: the answer's text to stdout, all else to stderr."""

    def __init__(self) -> None:
        self.attachments: list[dict[str, Any]] = []
        self._in_line = False
        self._touchpoints: dict[str, str] = {}
        self._text = ""

    def show(self, payload: dict[str, Any]) -> None:
        match payload["event_type"]:
            case "step_start":
                metadata = payload.get("metadata") or {}
                shield = f"{metadata.get('shield_id', '')} {metadata.get('touchpoint', '')}".strip()
                self._touchpoints[payload["step_id"]] = shield
                if dropped := metadata.get("dropped_turns"):
                    self._note("context", f"{dropped} earlier turns are left out: the model reads no more")
            case "step_progress" if payload["delta"]["type"] == "text":
                self._write(payload["delta"]["text"])
            case "step_complete":
                self._step(payload["step_details"])
            case "turn_complete" | "turn_awaiting_input":
                turn = payload["turn"]
                self.attachments = turn.get("output_attachments") or []
                said = turn["output_message"]["content"]
                if isinstance(said, str) and said and not self._text.endswith(said):
                    self._write(said)  # what a shield says instead

    def end_line(self) -> None:
        if self._in_line:
            typer.echo()
        self._in_line = False

    def _step(self, step: dict[str, Any]) -> None:
        if step["step_type"] == "shield_call":
            shield, violation = self._touchpoints.get(step["step_id"], ""), step.get("violation")
            said = "nothing found" if violation is None else violation.get("user_message") or "violation"
            level = "" if violation is None else f"{violation['violation_level']}: "
            self._note("shield", f"{shield}: {level}{said}")
        elif step["step_type"] == "tool_execution":
            for call in step["tool_calls"]:
                arguments = call.get("arguments_json") or json.dumps(call["arguments"])
                self._note("tool", f"{call['tool_name']} {arguments}")
            for response in step["tool_responses"]:
                self._note("  ->", _short(response["content"]))

    def _write(self, text: str) -> None:
        self._text += text
        typer.echo(text, nl=False)
        sys.stdout.flush()
        self._in_line = not text.endswith("\n")

    def _note(self, kind: str, text: str) -> None:
        self.end_line()
        _note(kind, text)


def _note(kind: str, text: str) -> None:
    typer.secho(f"[{kind}] {text}" if kind.isalpha() else f"{kind} {text}", dim=True, err=True)


def _short(content: Any) -> str:
    text = content if isinstance(content, str) else json.dumps(content)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text)} characters)"


def _bytes(content: Any) -> bytes | None:
    """Of an attachment: an image with data, a data URL, or a text."""
    if isinstance(content, str):
        return content.encode()
    image = content.get("image") or {}
    if data := image.get("data"):
        return base64.b64decode(data)
    uri = content.get("uri") or (image.get("url") or {}).get("uri") or ""
    head, _, body = uri.partition(";base64,")
    return base64.b64decode(body) if head.startswith("data:") and body else None
