"""`stack chat`: a talk in the terminal with a model of a running server."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated, Any, Protocol

import typer

from stack.cli.client import DEFAULT_URL, Client, Url
from stack.cli.problems import CliError, report

_HELP = "/reset forgets the talk, /exit or Ctrl-D ends it, Ctrl-C stops an answer"


def chat(
    model: Annotated[
        str | None, typer.Argument(help="A model's id; default: the server's first LLM.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message, kept through /reset.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Talk with a model of a running server.

    What is piped in is one message; the answer goes to stdout.

    \b
    Examples:
      stack chat
      stack chat smollm2-135m --system "You are a pirate."
      echo "Name three colours." | stack chat
    """
    with Client(url) as client:
        talk = Talk(client, model or first_llm(client), system)
        if sys.stdin.isatty():
            converse(talk)
        else:
            text = sys.stdin.read().strip()
            if not text:
                raise CliError('nothing was piped in; write e.g.: echo "Hello" | stack chat')
            talk.say(text)


class Talk:
    """The messages so far."""

    def __init__(self, client: Client, model_id: str, system: str | None) -> None:
        self.name = model_id
        self._client = client
        self._system = system
        self.reset()

    def reset(self) -> None:
        self.messages: list[dict[str, Any]] = (
            [{"role": "system", "content": self._system}] if self._system else []
        )

    def say(self, text: str) -> None:
        """Send a message and write the answer as it comes. Ctrl-C keeps what was said until then."""
        self.messages.append({"role": "user", "content": text})
        answer: list[str] = []
        stream = self._client.chat(self.name, self.messages)
        try:
            with contextlib.suppress(KeyboardInterrupt), contextlib.closing(stream):
                for piece in stream:
                    answer.append(piece)
                    typer.echo(piece, nl=False)
                    sys.stdout.flush()
        except CliError:
            self.messages.pop()
            raise
        typer.echo()
        self.messages.append({"role": "assistant", "content": "".join(answer), "stop_reason": "end_of_turn"})


class Conversation(Protocol):
    """What a terminal talks with."""

    @property
    def name(self) -> str: ...

    def say(self, text: str) -> None: ...

    def reset(self) -> None: ...


def converse(talk: Conversation) -> None:
    """Until Ctrl-D or /exit."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history in input()

    typer.secho(f"{talk.name}: {_HELP}", dim=True, err=True)
    while True:
        try:
            text = input("> ").strip()
        except KeyboardInterrupt:
            typer.echo()
            continue
        except EOFError:
            typer.echo()
            return
        if text in ("/exit", "/quit"):
            return
        if text == "/reset":
            talk.reset()
            typer.secho("forgotten", dim=True, err=True)
        elif text.startswith("/"):
            typer.secho(_HELP, dim=True, err=True)
        elif text:
            try:
                talk.say(text)
            except CliError as error:  # the talk goes on
                report(error)


def first_llm(client: Client) -> str:
    """Raises CliError."""
    for model in client.models():
        if model["model_type"] == "llm":
            return str(model["identifier"])
    raise CliError(f"the server at {client.url} has no LLM; see: stack models list")
