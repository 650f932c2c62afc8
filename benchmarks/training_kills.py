"""Kills, five of each kind, during one training job: it has to complete with all steps and the same losses.

A stack of its own is started in a temporary folder, with a tiny model, and killed with -9 part by part: a
worker, the job's own process, an API replica, the reconciler, and all of it. A second job of the same plan,
which nobody disturbs, gives the losses to compare with.

python benchmarks/training_kills.py
python benchmarks/training_kills.py --times 2 --kinds worker driver
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

STACK = """
http_options: {{host: 127.0.0.1, port: 8321}}
proxy_location: HeadOnly
logging_config: {{enable_access_log: false}}
applications:
  - {{name: stack, route_prefix: /, import_path: "stack.serve:api", args: {{num_cpus: 0.2}}}}
  - {{name: reconciler, route_prefix: null, import_path: "stack.serve:reconciler", args: {{}}}}
  - name: model-tiny
    route_prefix: null
    import_path: stack.serve:model
    args: {{model_id: tiny, source: "{model}", num_cpus: 0.2}}
"""
JOB, CALM = "killed", "calm"


class Stack:
    """A server that can be killed and started again."""

    def __init__(self, folder: Path, port: int) -> None:
        from tests.training.tiny import write_tiny_model

        self.home, self.url, self.port = folder / "home", f"http://127.0.0.1:{port}", port
        self.file = folder / "stack.yaml"
        (folder / "model").mkdir()
        self.file.write_text(STACK.format(model=write_tiny_model(folder / "model")))
        self.log = folder / "up.log"

    def start(self) -> None:
        environment = os.environ | {
            "STACK_HOME": str(self.home),
            "STACK_TRAIN_CHECKPOINT_S": "2",
            "RAY_AUTH_MODE": "disabled",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "stack.cli", "up", str(self.file), "--port", str(self.port)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--num-cpus", "4"], env=environment, stdout=log, stderr=log
            )
        until(lambda: b"curl" in self.log.read_bytes(), 240)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def processes(self) -> list[psutil.Process]:
        """Of this stack: its children, and what has its home in the environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("STACK_HOME") == str(self.home):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.url}{path}", timeout=30).raise_for_status().json()

    def job(self, job: str) -> dict[str, Any]:
        """Patiently: what answers may just have been killed."""
        for _ in range(240):
            try:
                found: dict[str, Any] = self.get(f"/v1/jobs/{job}")
                return found
            except httpx.HTTPError:
                time.sleep(0.5)
        raise TimeoutError(job)

    def submit(self, job: str, epochs: int) -> None:
        rows = [
            {"messages": [{"role": "user", "content": f"{n} and {n}?"}], "answer": f"It is {2 * n}."}
            for n in range(16)
        ]
        dataset = {"purpose": "post-training/messages", "dataset_id": "rows"}
        body = dataset | {"source": {"type": "rows", "rows": rows}}
        httpx.post(f"{self.url}/v1/datasets", json=body, timeout=60).raise_for_status()
        training = {
            "n_epochs": epochs,
            "max_steps_per_epoch": 0,
            "gradient_accumulation_steps": 1,
            "max_validation_steps": 0,
            "data_config": {
                "dataset_id": "rows",
                "batch_size": 4,
                "shuffle": True,
                "data_format": "instruct",
            },
            "optimizer_config": {
                "optimizer_type": "adamw",
                "lr": 1e-3,
                "weight_decay": 0,
                "num_warmup_steps": 0,
            },
        }
        request = {"job_uuid": job, "model": "tiny", "training_config": training}
        request |= {"hyperparam_search_config": {}, "logger_config": {}}
        url = f"{self.url}/v1/post-training/supervised-fine-tune"
        httpx.post(url, json=request, timeout=60).raise_for_status()

    def losses(self, job: str) -> dict[tuple[int, int], float]:
        """Means over the steps from one log, exclusive, to the next. Logs come every few seconds."""
        state = self.home / f"storage/training/{job}/runs/run/final/trainer_state.json"
        history = json.loads(state.read_text())["log_history"]
        logged = [(0, 0.0), *((entry["step"], entry["loss"]) for entry in history if "loss" in entry)]
        return {(before, step): loss for (before, _), (step, loss) in pairwise(logged)}


def until(reached: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.2)


PARTS = {
    "worker": "ray::RayTrainWorker",
    "driver": f"--job-id {JOB}",
    "api": "ServeReplica:stack:Api",
    "reconciler": "ServeReplica:reconciler",
}


def kill(stack: Stack, kind: str) -> None:
    if kind == "cluster":
        for process in stack.processes():
            process.kill()
        stack.process.wait()
        stack.start()
        return
    for process in stack.processes():
        try:
            if PARTS[kind] in " ".join(process.cmdline()):
                process.kill()
        except psutil.Error:
            continue


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=5, help="kills of each kind")
    parser.add_argument("--kinds", nargs="+", choices=[*PARTS, "cluster"], default=[*PARTS, "cluster"])
    parser.add_argument("--epochs", type=int, default=1200, help="of 4 steps each")
    parser.add_argument("--port", type=int, default=8421)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        stack = Stack(Path(folder), args.port)
        stack.start()
        try:
            measure(stack, args)
        finally:
            stack.stop()


def measure(stack: Stack, args: argparse.Namespace) -> None:
    print(f"load {os.getloadavg()[0]:.1f}")
    stack.submit(CALM, args.epochs)
    until(lambda: stack.job(CALM)["status"] == "completed", 1200)
    stack.submit(JOB, args.epochs)
    until(lambda: done(stack) > 8, 240)
    for kind in args.kinds:
        pauses = []
        for _ in range(args.times):
            before = done(stack)
            if stack.job(JOB)["status"] == "completed":
                raise SystemExit("the job was over too soon: more --epochs")
            kill(stack, kind)
            killed = time.monotonic()
            until(lambda before=before: done(stack) > before, 300)  # type: ignore[misc]  # bound now
            pauses.append(time.monotonic() - killed)
            time.sleep(3)
        median = statistics.median(pauses)
        print(f"{kind:11} {args.times} kills; beyond the step it had after {median:.1f} s (median)")
    until(lambda: stack.job(JOB)["status"] in ("completed", "failed"), 1800)
    job, calm, ours = stack.job(JOB), stack.losses(CALM), stack.losses(JOB)
    common = calm.keys() & ours.keys()
    worst = max(abs(calm[steps] - ours[steps]) for steps in common)
    print(f"{job['status']} after attempt {job['attempt']}, {max(ours)[1]} of {max(calm)[1]} steps")
    print(
        f"{len(common)} of {len(calm)} losses are means over the same steps as those of the job that nobody"
    )
    print(f"disturbed, and differ by {worst:.1e} at most")


def done(stack: Stack) -> int:
    return int(stack.job(JOB)["progress"].get("done", 0))


if __name__ == "__main__":
    main()
