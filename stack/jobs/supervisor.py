"""The actor that has a job's process as its child. Imports little: a job waits for it to start."""

from __future__ import annotations

import os
import threading

import ray

from stack.jobs.logs import Copier, log_path
from stack.jobs.processes import JobProcess, command, environment
from stack.settings import get_settings

_OF_THE_WORKER = ("RAY_JOB_ID", "RAY_RAYLET_PID", "RAY_ENABLE_AUTO_CONNECT", "RAY_JOB_CONFIG_JSON_ENV_VAR")


class Supervisor:
    """Has the process of one job as its child, and ends with it; it ends with the supervisor."""

    def __init__(self, kind: str, job_id: str) -> None:
        self._me = ray.get_runtime_context().current_actor
        address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        environ = {name: value for name, value in os.environ.items() if name not in _OF_THE_WORKER}
        settings = get_settings()
        self._log = Copier(settings, job_id)
        self._log.start()
        log = log_path(settings.home, job_id)
        self._process = JobProcess(command(kind, job_id), log, environment(address, environ))
        threading.Thread(target=self._wait, name="job", daemon=True).start()

    def _wait(self) -> None:
        self._process.wait()
        self._log.end()
        self._me.end.remote()

    def stop(self) -> None:
        self._process.stop()

    def end(self) -> None:
        ray.actor.exit_actor()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
