"""`stack batch`: files of prompts answered by a running server."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from stack.cli.client import DEFAULT_URL, Client, Url
from stack.cli.job_progress import follow_or_leave, job_path
from stack.cli.problems import CliError

app = typer.Typer(help="Have files of prompts answered by a running server.", no_args_is_help=True)

BUCKET = "batches"
_ASKED = {"messages": "chat-completion", "content": "completion"}


@app.command("run")
def run(
    model: Annotated[str, typer.Option("--model", help="The model that answers.", show_default=False)],
    source: Annotated[
        str, typer.Option("--input", help="JSON lines; a path or an s3:// or gs:// URL.", show_default=False)
    ],
    target: Annotated[
        str, typer.Option("--output", help="Where the answers go; a path or a URL.", show_default=False)
    ],
    max_tokens: Annotated[int, typer.Option(min=0, help="Limit of an answer; 0: the model's context.")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="A text that ends an answer; up to four.", show_default=False)
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Answer each line of a file, in their order. Ctrl-C leaves the job running.

    A line has `messages`, or `content` for a completion without a chat template; other fields of the request
    (`sampling_params`, `tools`, …) go before the options here, and a `custom_id` comes back with the answer.
    The output has a line for each: its `response`, or its `error`. The same command again goes on where it
    was: with the same job, or with fetching its answers.

    \b
    Examples:
      stack batch run --model smollm2-135m --input questions.jsonl --output answers.jsonl
      stack batch run --model smollm2-135m --input s3://bucket/in.jsonl --output s3://bucket/out.jsonl
    """
    strategy = (
        {"type": "top_p", "temperature": temperature, "top_p": 1.0} if temperature else {"type": "greedy"}
    )
    params = {"strategy": strategy, "max_tokens": max_tokens, "stop": stop or None}
    with Client(url) as client, _local(source) as file:
        digest, asked = _inspect(file, source)
        key = f"{digest}.jsonl"
        if not client.has(f"/v1/files/{BUCKET}/{key}"):
            _upload(client, file, key)
        options = {"model_id": model, "sampling_params": params}
        body = {"bucket": BUCKET, "key": key, "asked": {"operation": asked, "options": options}}
        job_id = client.post("/v1/jobs/batch", body)["job_id"]
        typer.echo(f"job {job_id} answers {source}", err=True)
        job = follow_or_leave(client, job_id)
        if job["status"] != "completed":
            raise CliError(f"job {job_id} is {job['status']}: {job['detail'] or f'stack jobs logs {job_id}'}")
        _fetch(client, job_id, target)
    result = job["result"]
    failed = f", {result['failed']} of them are errors" if result["failed"] else ""
    typer.echo(f"{result['rows']} answers in {target}{failed}", err=True)


def _inspect(file: Path, source: str) -> tuple[str, str]:
    """The contents' digest, and what the first line asks for."""
    digest = hashlib.sha256()
    with file.open("rb") as lines:
        first = lines.readline()
        digest.update(first)
        while block := lines.read(1 << 20):
            digest.update(block)
    try:
        row: Any = json.loads(first)
    except ValueError:
        row = None
    asked = next((asked for field, asked in _ASKED.items() if isinstance(row, dict) and field in row), None)
    if asked is None:
        raise CliError(
            f"{source}: the first line is no JSON object with messages or content, such as "
            '{"messages": [{"role": "user", "content": "Hello"}]}'
        )
    return digest.hexdigest()[:40], asked


def _upload(client: Client, file: Path, key: str) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("upload"), BarColumn(bar_width=24), DownloadColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("upload", total=file.stat().st_size)
        client.upload(BUCKET, key, file, lambda done: bar.update(task, completed=done))


def _fetch(client: Client, job_id: str, target: str) -> None:
    """All or nothing: a file that is there is whole."""
    path = f"{job_path(job_id)}/results"
    if "://" in target:
        import fsspec

        with fsspec.open(target, "wb") as file:
            client.download(path, file)
        return
    whole = Path(target)
    part = whole.with_name(f".{whole.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            client.download(path, file)
        part.replace(whole)
    except OSError as error:
        raise CliError(f"{target} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _local(source: str) -> Iterator[Path]:
    """The file on this machine: a copy, when it is elsewhere."""
    if "://" not in source:
        if not Path(source).is_file():
            raise CliError(f"there is no file {source}; see: stack batch run --help")
        yield Path(source)
        return
    import fsspec

    with tempfile.NamedTemporaryFile(suffix=".jsonl") as copy:
        try:
            with fsspec.open(source, "rb") as file:
                shutil.copyfileobj(file, copy, 1 << 20)
        except (OSError, ImportError, ValueError) as error:
            raise CliError(f"{source} cannot be read: {error}") from None
        copy.flush()
        yield Path(copy.name)
