"""`stack up`: the whole stack on this machine, until Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stack.cli.problems import CliError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from stack.cli.cluster import Cluster

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def up(
    config: Annotated[
        Path | None, typer.Argument(help="A Serve config file.", show_default="deployments/stack.yaml")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.", show_default="from the file")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port to listen on.", show_default="from the file")
    ] = None,
    haproxy: Annotated[
        bool,
        typer.Option("--haproxy/--no-haproxy", help="Put HAProxy in front (Ray's Python proxy is slower)."),
    ] = True,
    address: Annotated[
        str | None,
        typer.Option(help="Use the Ray cluster at this address; default: start one for this stack."),
    ] = None,
    num_cpus: Annotated[
        int | None, typer.Option(min=1, help="CPUs that Ray counts on; default: all.")
    ] = None,
    dashboard: Annotated[bool, typer.Option("--dashboard", help="Start Ray's dashboard, too.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait until the models answer.")] = 600,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the logs of Ray and the replicas.")
    ] = False,
) -> None:
    """Start the server: Ray, the API and its models. Ctrl-C ends all of it.

    Weights are fetched first where they are missing. The same configuration runs with
    `serve run deployments/stack.yaml` on a Ray cluster of yours.

    \b
    Examples:
      stack up
      stack up --port 8400
      stack up my-models.yaml --host 0.0.0.0
      stack up --no-haproxy --verbose
    """
    from rich.console import Console

    from stack.cli import config as configs
    from stack.cli import environment

    began = time.monotonic()
    console = Console(stderr=True)
    environment.checked_settings()
    path = configs.find(config)
    host, port = _endpoint(path, host, port)

    from stack.cli import cluster as clusters

    with clusters.run_folder(port) as folder, _signals():
        if address is None:
            clusters.check_port(host, port)
        environment.apply(environment.ray_environment(folder, haproxy=haproxy, loopback=address is None))
        cluster = clusters.Cluster(folder, address, dashboard, num_cpus, verbose)
        try:
            _run(cluster, path, {"host": host, "port": port}, began + timeout, console)
        except KeyboardInterrupt:
            cluster.keep_logs = False
        finally:
            _stop(cluster, console)
    console.print("stopped")


def _stop(cluster: Cluster, console: Console) -> None:
    """Orderly at first; a second Ctrl-C cuts the good-byes short, but not the cleaning up."""
    try:
        with console.status("stopping … (Ctrl-C again: at once)"):
            cluster.shut_down()
    except KeyboardInterrupt:
        pass
    finally:
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        cluster.clean_up()


def _run(cluster: Cluster, path: Path, http: dict[str, Any], deadline: float, console: Console) -> None:
    """Start everything and stay until a signal comes, or until Ray is gone."""
    with console.status("checking the configuration …"):
        from stack.cli import config as configs
        from stack.serve import run  # Ray reads its environment when it is imported

        contents = configs.load(path)
        contents["http_options"] = {**(contents.get("http_options") or {}), **http}
    console.print("starting Ray …")  # no spinner: the weights have a progress line meanwhile
    pulling = _pull(contents)
    cluster.start()
    _trap_signals()
    if pulling is not None and pulling.wait() != 0:
        raise CliError("the weights could not be fetched, see above")
    run.deploy(contents)
    url = _url(**http)
    _wait_until_ready(cluster, contents, url, deadline, console)
    _announce(url, contents, cluster, console)
    while cluster.wait_until_dead(1.0) is None:
        pass
    raise CliError(f"Ray ended unexpectedly; logs: {cluster.logs}")


def _endpoint(path: Path, host: str | None, port: int | None) -> tuple[str, int]:
    """Where to listen: the options, else the file, else 127.0.0.1:8321. Full checks come later."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        options = data.get("http_options") or {}
        return host or str(options.get("host", "127.0.0.1")), port or int(options.get("port", 8321))
    except (AttributeError, OSError, ValueError, yaml.YAMLError):
        return host or "127.0.0.1", port or 8321


def _url(host: str, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"


def declared_models(contents: dict[str, Any]) -> list[dict[str, Any]]:
    """The args of each model application in a config."""
    return [
        application["args"]
        for application in contents["applications"]
        if application["import_path"].replace(":", ".") == "stack.serve.model"
    ]


def _pull(contents: dict[str, Any]) -> subprocess.Popen[bytes] | None:
    """Fetch weights in a process of its own: converting some takes torch, which this one need not carry."""
    sources = [args["source"] for args in declared_models(contents)]
    if not sources:
        return None
    return subprocess.Popen(
        [sys.executable, "-m", "stack.cli", "models", "pull", *sources], stdout=subprocess.DEVNULL
    )


def _wait_until_ready(
    cluster: Cluster, contents: dict[str, Any], url: str, deadline: float, console: Console
) -> None:
    """Return when every application runs and every declared model has answered a request over HTTP."""
    from stack.serve import run

    names = {application.get("name", "default") for application in contents["applications"]}
    shown = ""
    with console.status("deploying …") as status:
        while True:
            states = {name: state for name, state in run.states().items() if name in names}
            for name, state in states.items():
                if state.status == "DEPLOY_FAILED":
                    raise CliError(f"{name} could not start: {state.reason}\nlogs: {cluster.logs}/serve")
            waiting = sorted(names - {n for n, s in states.items() if s.status == "RUNNING"})
            if not waiting:
                break
            if time.monotonic() > deadline:
                raise CliError(f"{', '.join(waiting)} did not start in time; logs: {cluster.logs}")
            line = f"waiting for {', '.join(waiting)} …"
            status.update(line)
            if line != shown and not console.is_terminal:
                console.print(line)
            shown = line
            if cluster.wait_until_dead(0.1) is not None:
                raise CliError(f"Ray ended while the stack started; logs: {cluster.logs}")
        _first_answers(url, declared_models(contents), deadline, cluster, status)


def _first_answers(
    url: str, models: list[dict[str, Any]], deadline: float, cluster: Cluster, status: Status
) -> None:
    """Ask each model once: HTTP, the handle and the engine then have worked, and are warm."""
    from rich.markup import escape

    from stack.cli.client import Client

    with _own_key() as key, Client(url, timeout_s=60.0, key=key) as client:
        pending = list(models)
        while True:
            try:
                client.get("/v1/health")
                while pending:
                    client.post(*_smallest_request(pending[0]))
                    del pending[0]
                return
            except CliError as error:  # routes and registry rows appear a moment after the replicas
                status.update(f"waiting for the first answers: {escape(str(error))} …")
                if time.monotonic() > deadline:
                    raise CliError(f"no answer in time: {error}; logs: {cluster.logs}") from None
                if cluster.wait_until_dead(0.1) is not None:
                    raise CliError(f"Ray ended while the stack started; logs: {cluster.logs}") from None


@contextmanager
def _own_key() -> Iterator[str | None]:
    """A key for this process's requests, if the server answers only those with one."""
    from stack.cli.keys import create, delete
    from stack.settings import get_settings

    if not get_settings().require_api_key:
        yield None
        return
    name = f"stack-up-{os.getpid()}-{time.time_ns()}"
    key = create(name)
    try:
        yield key
    finally:
        delete(name)


def _smallest_request(args: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Path and body: one vector, or one token."""
    model = {"model_id": args["model_id"]}
    if args.get("model_type", "llm") == "embedding":
        return "/v1/inference/embeddings", model | {"contents": ["ready?"]}
    messages = [{"role": "user", "content": "ready?"}]
    sampling = {"strategy": {"type": "greedy"}, "max_tokens": 1}
    return "/v1/inference/chat-completion", model | {"messages": messages, "sampling_params": sampling}


def _announce(url: str, contents: dict[str, Any], cluster: Cluster, console: Console) -> None:
    import psutil

    from stack.settings import get_settings

    seconds = time.time() - psutil.Process().create_time()
    console.print(f"[bold green]ready[/] at [bold]{url}[/] after {seconds:.0f} s", highlight=False)
    models = declared_models(contents)
    for args in models:
        console.print(f"  {args['model_id']}  [dim]{args.get('model_type', 'llm')}[/]", highlight=False)
    llm = next((args["model_id"] for args in models if args.get("model_type", "llm") == "llm"), None)
    if llm is not None:
        body = json.dumps({"model_id": llm, "messages": [{"role": "user", "content": "Hello!"}]})
        typer.echo("try:", err=True)
        command = f"curl {url}/v1/inference/chat-completion -H 'content-type: application/json'"
        if get_settings().require_api_key:
            command += ' -H "authorization: Bearer $STACK_API_KEY"'
        typer.echo(f"  {command} \\\n    -d '{body}'", err=True)
    if cluster.address is None:
        metrics = f"http://127.0.0.1:{cluster.metrics_port}/metrics"
        console.print(f"[dim]metrics for Prometheus {metrics}[/]", highlight=False, soft_wrap=True)
    console.print(
        f"[dim]page {url}/ui · API {url}/docs · logs {cluster.logs} · Ctrl-C stops[/]",
        highlight=False,
        soft_wrap=True,
    )


@contextmanager
def _signals() -> Iterator[None]:
    """Put the handlers back that were there before."""
    before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    _trap_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _trap_signals() -> None:
    """SIGTERM and SIGHUP end the stack as Ctrl-C does. ray.init takes SIGTERM, so this runs after it, too."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    for number in _STOP_SIGNALS:
        signal.signal(number, interrupt)
