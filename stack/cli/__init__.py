"""The `stack` command. Each subcommand is a module; ray and torch are imported only where they are used."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `stack` script."""
    from stack.cli.app import app

    app(prog_name="stack")
