"""Jobs' processes on a Ray cluster: each has a detached actor that supervises it, whoever started it.

Ray's own job server does the same, but lives in Ray's dashboard, which is not always there, and `JobManager`
below it is private. This needs actors and their names only. Where there is a dashboard,
`ray job submit -- python -m jobs.<kind> --job-id …` works as well.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Collection
from typing import Any

import ray
from ray.util import list_named_actors

from stack.jobs.logs import Copier, log_path
from stack.jobs.processes import JobProcess, command, environment
from stack.settings import get_settings
from stack.store.jobs import Job

NAMESPACE = "stack-jobs"
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


class RayLauncher:
    """Ray's calls block, so each runs in a thread."""

    async def running(self) -> Collection[str]:
        actors: list[dict[str, Any]] = await asyncio.to_thread(list_named_actors, all_namespaces=True)
        return [actor["name"] for actor in actors if actor["namespace"] == NAMESPACE]

    async def start(self, job: Job) -> None:
        await asyncio.to_thread(self._start, job)

    @staticmethod
    def _start(job: Job) -> None:
        """The supervisor reserves no CPU: on a laptop the models have most of them already."""
        options = {
            "name": job.id,
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
            "num_cpus": 0,
            "max_restarts": 0,
            "max_concurrency": 4,
        }
        ray.remote(Supervisor).options(**options).remote(job.kind, job.id)

    async def stop(self, job_id: str) -> None:
        await asyncio.to_thread(self._stop, job_id)

    @staticmethod
    def _stop(job_id: str) -> None:
        try:
            ray.get_actor(job_id, namespace=NAMESPACE).stop.remote()
        except ValueError:  # it has ended
            return
