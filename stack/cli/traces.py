"""`stack traces`: what a running server recorded, as rows to train on."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from stack.cli.client import DEFAULT_URL, Client, Url
from stack.cli.problems import CliError

app = typer.Typer(help="Turn recorded traces into rows to train on.", no_args_is_help=True)

_PAGE = 1000  # rows

Spans = Annotated[
    str, typer.Argument(metavar="SPANS", help="The dataset that spans were exported to.", show_default=False)
]
To = Annotated[str, typer.Option("--to", help="Id of the dataset that is registered.", show_default=False)]


@app.command("messages")
def messages(
    spans: Spans,
    to: To,
    score: Annotated[
        str | None, typer.Option(help="Only conversations with this metric.", show_default=False)
    ] = None,
    at_least: Annotated[float, typer.Option(help="How much of it they have at least.")] = 0.0,
    url: Url = DEFAULT_URL,
) -> None:
    """Register the conversations of exported spans as a dataset for fine-tuning.

    Each chat is a row, and each turn of an agent, with its calls of tools. The score is a metric that was
    logged on the chat's span, its turn or its request, such as feedback. docs/telemetry.md shows the export.

    \b
    Examples:
      stack traces messages spans --to learned
      stack traces messages spans --to liked --score feedback --at-least 1
    """
    from stack.telemetry.learning import message_rows

    with Client(url) as client:
        with _readable(spans):
            found = list(message_rows(_rows(client, spans), score, at_least))
        _register(client, to, found, f"{spans} has no conversation", score)


@app.command("pairs")
def pairs(
    spans: Spans,
    to: To,
    score: Annotated[str, typer.Option(help="The metric that tells which answer is better.")] = "feedback",
    url: Url = DEFAULT_URL,
) -> None:
    """Register the best and the worst answer to each prompt as a dataset for preference optimisation.

    \b
    Examples:
      stack traces pairs spans --to preferred
      stack traces pairs spans --to preferred --score judge
    """
    from stack.telemetry.learning import pair_rows

    with Client(url) as client:
        with _readable(spans):
            found = list(pair_rows(_rows(client, spans), score))
        _register(client, to, found, f"{spans} has no prompt with two answers that differ", score)


@contextmanager
def _readable(dataset_id: str) -> Generator[None]:
    try:
        yield
    except ValueError as error:
        raise CliError(f"{dataset_id}: {error}") from None


def _rows(client: Client, dataset_id: str) -> Iterator[dict[str, Any]]:
    """All rows of the dataset, checked to be spans."""
    from rich.console import Console
    from rich.progress import Progress

    path, start = f"/v1/datasetio/iterrows/{quote(dataset_id, safe='')}", 0
    with Progress(console=Console(stderr=True), transient=True) as progress:
        read = progress.add_task("spans", total=None)
        while True:
            page = client.get(f"{path}?{urlencode({'start_index': start, 'limit': _PAGE})}")
            for row in page["data"]:
                if not {"trace_id", "span_id", "start_time"} <= row.keys():
                    raise CliError(f"{dataset_id} has no spans; docs/telemetry.md shows how to export them")
                yield row
            progress.advance(read, len(page["data"]))
            if (start := page.get("next_start_index")) is None:
                return


def _register(
    client: Client, dataset_id: str, rows: list[dict[str, Any]], empty: str, score: str | None
) -> None:
    if not rows:
        scored = f" with the metric {score!r}" if score else ""
        raise CliError(
            f"{empty}{scored}: is STACK_TELEMETRY_CONTENT on, and were its attributes exported? "
            "docs/telemetry.md shows how"
        )
    body = {
        "dataset_id": dataset_id,
        "purpose": "post-training/messages",
        "source": {"type": "rows", "rows": rows},
        "metadata": {"score": score},
    }
    client.post("/v1/datasets", body)
    typer.echo(f"dataset {dataset_id} is registered, {len(rows)} rows")
