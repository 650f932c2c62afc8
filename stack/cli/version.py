"""`stack version`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

import typer


def version() -> None:
    """Print the versions of stack and of what it stands on.

    \b
    Example:
      stack version
    """
    typer.echo(f"stack {package_version('stack') or 'from source'}")
    typer.echo(f"python {platform.python_version()}")
    for name in ("ray", "torch", "transformers"):
        typer.echo(f"{name} {package_version(name) or 'not installed'}")


def package_version(name: str) -> str | None:
    """The installed version of a distribution, None without it."""
    try:
        return installed_version(name)
    except PackageNotFoundError:
        return None
