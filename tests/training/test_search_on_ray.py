"""Searches on a real cluster: what is stopped, what fails, and what a kill -9 costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray

from stack.store.jobs import LeaseLost
from stack.training.plan import Parameter, Plan, Search
from tests.training.test_values import plan

if TYPE_CHECKING:
    from stack.training.search import Found

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a small cluster, to which this process is connected. Its folder is short, as sockets' paths are."""
    environment = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_raylet_start_wait_time_s": "120",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # each report waits for one
        "PYTHONPATH": str(ROOT),  # of workers
    }
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        context = ray.init(
            address="local", num_cpus=2, include_dashboard=False, _temp_dir=folder, log_to_driver=False
        )
        yield str(context.address_info["gcs_address"])
        ray.shutdown()


def searched(scheduler: str, *lrs: float) -> Plan:
    parameters = {"lr": Parameter(type="grid", values=list(lrs))}
    config = {"parameters": parameters, "num_trials": 1, "scheduler": scheduler}
    return plan(search=Search.model_validate(config))


def told(found: Found, key: str) -> list[Any]:
    return [trial.get(key) for trial in found.trials]


def test_asha_stops_what_is_worse_and_a_failure_stops_nothing_else(address: str, tmp_path: Path) -> None:
    """Losses are lr / step. Trial 0 fails at step 3; trials 1 and 2 are worse than it, trial 3 is not."""
    from tests.training.searching import FAILS, run_search, steps, without_train

    found = run_search(tmp_path, searched("asha", FAILS, 1.0, 2.0, 0.4), without_train)
    assert told(found, "status") == ["failed", "stopped", "stopped", "completed"]
    assert told(found, "error")[0] == "cannot be trained"
    assert found.trials[2]["metrics"] == {"step": 1, "epoch": 0.5, "validation_loss": 2.0}
    assert len(steps(tmp_path, 2)) < len(steps(tmp_path, 3)) == 4
    assert found.outcome.metrics == {"step": 4, "epoch": 2.0, "validation_loss": 0.1}
    assert (found.outcome.name, found.outcome.model) == ("trial-3", "training/job/runs/trial-3/final/model")


def test_a_search_that_lost_its_job_notes_nothing(address: str, tmp_path: Path) -> None:
    from tests.training.searching import LOST, run_search, without_train

    with pytest.raises(LeaseLost):
        run_search(tmp_path, searched("none", LOST), without_train)
    assert not (tmp_path / "storage/jobs/job/training/trials").exists()


def test_a_killed_search_goes_on(address: str, tmp_path: Path) -> None:
    """-9 to the worker of the first trial, and to the search during the second one."""
    from tests.training.searching import DIES_ONCE, WAITS_ONCE, on_train, run_search, steps

    whole = searched("none", DIES_ONCE, WAITS_ONCE)
    kill_when_it_waits(address, tmp_path, whole)
    first = tmp_path / "storage/jobs/job/training/trials/trial-0.json"
    first.unlink()  # as if it had been killed just before
    taken = steps(tmp_path, 0)
    found = run_search(tmp_path, whole, on_train)
    assert told(found, "status") == ["completed", "completed"]
    assert told(found, "metrics") == [
        {"step": 4, "epoch": 2.0, "validation_loss": lr / 4} for lr in (DIES_ONCE, WAITS_ONCE)
    ]
    assert steps(tmp_path, 0) == taken
    for trial in (0, 1):
        assert [*dict.fromkeys(steps(tmp_path, trial))] == [1, 2, 3, 4]
        assert len(steps(tmp_path, trial)) <= 5  # the checkpoint before a kill may not be complete


def kill_when_it_waits(address: str, home: Path, plan: Plan) -> None:
    (home / "plan.json").write_text(plan.model_dump_json())
    command = [sys.executable, "-m", "tests.training.searching", address, str(home), str(home / "plan.json")]
    with (
        (home / "log").open("wb") as log,
        subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) as process,
    ):
        deadline = time.monotonic() + 300
        while not (home / "waited").exists():
            assert process.poll() is None, (home / "log").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
