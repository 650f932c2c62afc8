"""Puts the subcommands together, and turns what a user can mend into one line instead of a traceback."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from stack.cli import agent, batch, chat, doctor, evals, jobs, keys, models, traces, up, version
from stack.cli.problems import CliError, report
from stack.errors import StackError

_HELP = """A server for the whole Llama Stack HTTP API on Ray.

\b
Start here:
  stack doctor
  stack up
  stack chat
"""


class Group(TyperGroup):
    """Answers a `CliError` or a `StackError` with its message and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (CliError, StackError) as error:
            report(error)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Group,
    help=_HELP,
    no_args_is_help=True,
    rich_markup_mode=None,  # rich's help costs a third of the command's start
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("up")(up.up)
app.command("doctor")(doctor.doctor)
app.add_typer(models.app, name="models")
app.add_typer(jobs.app, name="jobs")
app.add_typer(evals.app, name="eval")
app.add_typer(batch.app, name="batch")
app.add_typer(traces.app, name="traces")
app.add_typer(keys.app, name="keys")
app.command("chat")(chat.chat)
app.command("agent")(agent.agent)
app.command("version")(version.version)
