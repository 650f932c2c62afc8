"""Jobs' processes on a Ray cluster: each has a detached actor that supervises it, whoever started it.

Ray's own job server does the same, but lives in Ray's dashboard, which is not always there, and `JobManager`
below it is private. This needs actors and their names only. Where there is a dashboard,
`ray job submit -- python -m jobs.<kind> --job-id …` works as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import ray
from ray.util import list_named_actors

from stack.jobs.supervisor import Supervisor
from stack.store.jobs import Job

NAMESPACE = "stack-jobs"


def cluster_cpus() -> int:
    """Of all nodes; at least one."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's
    return max(1, int(resources.get("CPU", 1)))


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
