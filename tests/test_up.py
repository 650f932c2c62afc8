"""`stack up` from start to end, with a small application of the user's own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import ray

from stack.cli.cluster import Cluster
from stack.cli.problems import CliError
from tests.terminal import Terminal

UP = [sys.executable, "-m", "stack.cli", "up"]
APPLICATION = """
from fastapi import FastAPI
from ray import serve

app = FastAPI()

@serve.deployment(ray_actor_options={"num_cpus": 0.1})
@serve.ingress(app)
class Hello:
    def __init__(self, fail):
        if fail:
            raise ValueError("the weights are bad")

    @app.get("/v1/health")
    def health(self):
        return {"status": "OK"}

def build(args: dict):
    return Hello.bind(args.get("fail", False))
"""


def config(folder: Path, port: int, *, fail: bool = False) -> Path:
    (folder / "hello.py").write_text(APPLICATION)
    path = folder / "hello.yaml"
    path.write_text(f"""
http_options: {{host: 127.0.0.1, port: {port}}}
proxy_location: HeadOnly
applications:
- {{name: hello, route_prefix: /, import_path: "hello:build", args: {{fail: {str(fail).lower()}}}}}
""")
    return path


def test_up_serves_until_ctrl_c_and_leaves_nothing_behind(tmp_path: Path, unused_tcp_port: int) -> None:
    path, url = config(tmp_path, unused_tcp_port), f"http://127.0.0.1:{unused_tcp_port}"
    with Terminal([*UP, str(path)], cwd=tmp_path) as terminal:
        terminal.expect(f"ready at {url}", timeout_s=120)
        assert httpx.get(f"{url}/v1/health", trust_env=False).json() == {"status": "OK"}

        second = subprocess.run([*UP, str(path)], capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 1
        assert f"another stack runs on port {unused_tcp_port}" in second.stderr

        started = psutil.Process(terminal.process.pid).children(recursive=True)
        assert {"gcs_server", "raylet", "haproxy"} <= {process.name() for process in started}

        terminal.interrupt()
        terminal.expect("stopped", timeout_s=60)
        assert terminal.process.wait(30) == 0
        _, alive = psutil.wait_procs(started, timeout=0)
        assert alive == []
    assert not list(Path("/tmp").glob(f"stack-*/{unused_tcp_port}"))


def test_up_says_why_an_application_cannot_start(tmp_path: Path, unused_tcp_port: int) -> None:
    path = config(tmp_path, unused_tcp_port, fail=True)
    done = subprocess.run(
        [*UP, str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 1
    assert "error: hello could not start: ValueError: the weights are bad" in done.stderr
    (logs,) = re.findall(r"^logs: (.*)$", done.stderr, re.MULTILINE)
    assert "the weights are bad" in "".join(log.read_text() for log in Path(logs).glob("*.log"))


@pytest.mark.parametrize("failures", [1, 99])
def test_ray_that_starts_too_slowly_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    left: list[psutil.Process] = []

    def init(**_: Any) -> None:
        if len(left) < failures:
            command = [sys.executable, "-c", "import time; time.sleep(60)", f"{tmp_path}/ray/session"]
            left.append(psutil.Process(subprocess.Popen(command).pid))
            raise Exception("The current node timed out during startup. This could happen because …")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr("stack.cli.cluster.adopt_orphans", lambda: None)  # for all of a process's life
    monkeypatch.setattr(sys, "path", sys.path.copy())
    cluster = Cluster(tmp_path)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])  # such as a download
    try:
        if failures == 1:
            cluster.start()
            assert len(left) == 1
        else:
            with pytest.raises(CliError, match="is the machine overloaded"):
                cluster.start()
            assert len(left) == 3
        assert not any(process.is_running() for process in left)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
