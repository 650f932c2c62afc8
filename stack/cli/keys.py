"""`stack keys`: who may ask a server, kept in its database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from stack.store.api_keys import ApiKeys

T = TypeVar("T")

app = typer.Typer(
    help="Make API keys for the server whose settings these are, see them and delete them.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.", show_default=False)]

_CONTENT = {True: "recorded", False: "not recorded", None: "as the server's settings say"}


@app.command("create")
def create_key(
    name: Name,
    record_content: Annotated[
        bool | None,
        typer.Option(
            "--record-content/--no-record-content",
            help="Whether telemetry keeps the prompts and answers of this key's requests.",
            show_default="as STACK_TELEMETRY_CONTENT says",
        ),
    ] = None,
) -> None:
    """Make a key and print it, once: the database has only its hash.

    It works at once, on every replica. Clients send it as `Authorization: Bearer KEY`; llama-stack-client
    takes it as api_key, the stack command reads STACK_API_KEY.

    \b
    Examples:
      stack keys create alice
      stack keys create research --record-content
    """
    typer.echo(create(name, record_content))


@app.command("list")
def list_keys() -> None:
    """List the keys' names.

    \b
    Examples:
      stack keys list
    """
    from rich.console import Console
    from rich.table import Table

    found = _with(lambda keys: keys.list())
    if not found:
        typer.echo("no keys; make one: stack keys create NAME")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("key", "made", "prompts and answers"):
        table.add_column(title, overflow="fold")
    for key in found:
        table.add_row(key.name, f"{key.created_at:%Y-%m-%d %H:%M}", _CONTENT[key.record_content])
    Console().print(table)


@app.command("delete")
def delete_key(name: Name) -> None:
    """Delete a key. Replicas that know it refuse it some five seconds later.

    \b
    Examples:
      stack keys delete alice
    """
    delete(name)
    typer.echo(f"deleted {name}")


def create(name: str, record_content: bool | None = None) -> str:
    """A new key."""
    return _with(lambda keys: keys.create(name, record_content))


def delete(name: str) -> None:
    _with(lambda keys: keys.delete(name))


def _with(work: Callable[[ApiKeys], Awaitable[T]]) -> T:
    from stack.cli.environment import checked_settings
    from stack.store.api_keys import open_api_keys

    async def run() -> T:
        async with open_api_keys(checked_settings()) as keys:
            return await work(keys)

    return asyncio.run(run())
