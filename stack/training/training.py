"""Training: what the PostTraining API does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stack.datasets.datasets import Datasets
from stack.errors import NotFound
from stack.schemas.models import Model
from stack.schemas.post_training import (
    PostTrainingJob,
    PostTrainingJobArtifactsResponse,
    PostTrainingJobStatusResponse,
)
from stack.settings import Settings
from stack.store.job_items import JobItems
from stack.store.jobs import Job, Jobs
from stack.store.registry import Registry
from stack.store.storage import Storage
from stack.training.plan import KINDS, Plan
from stack.training.submit import Submissions

Checkpoints = list[dict[str, Any]]


class Training:
    """Jobs of other kinds are unknown here."""

    def __init__(
        self, settings: Settings, models: Registry[Model], jobs: Jobs, datasets: Datasets, storage: Storage
    ) -> None:
        self._jobs, self._items, self._storage = jobs, JobItems(jobs.database), storage
        submissions = Submissions(settings, models, jobs, datasets, storage)
        self.supervised_fine_tune = submissions.supervised_fine_tune
        self.preference_optimize = submissions.preference_optimize

    async def list(self) -> list[PostTrainingJob]:
        """The newest first."""
        return [PostTrainingJob(job_uuid=job_id) for job_id in await self._jobs.ids(tuple(KINDS))]

    async def status(self, job_uuid: str) -> PostTrainingJobStatusResponse:
        """Raises NotFound. The checkpoints are those that are kept, the oldest first."""
        job = await self._get(job_uuid)
        return PostTrainingJobStatusResponse(
            job_uuid=job.id,
            status=job.status,
            scheduled_at=job.created_at,
            started_at=job.started_at,
            completed_at=job.ended_at,
            resources_allocated=_allocated(job),
            checkpoints=await self._checkpoints(job),
        )

    async def artifacts(self, job_uuid: str) -> PostTrainingJobArtifactsResponse:
        """The checkpoints, then whatever else the job made. Raises NotFound."""
        job = await self._get(job_uuid)
        others = (job.result or {}).get("artifacts", [])
        return PostTrainingJobArtifactsResponse(
            job_uuid=job.id, checkpoints=[*await self._checkpoints(job), *others]
        )

    async def cancel(self, job_uuid: str) -> None:
        """Raises NotFound, or BadRequest for a job that has ended."""
        await self._get(job_uuid)
        await self._jobs.cancel(job_uuid)

    async def _get(self, job_uuid: str) -> Job:
        job = await self._jobs.get(job_uuid)
        if job.kind not in KINDS:
            raise NotFound("job", job_uuid)
        return job

    async def _checkpoints(self, job: Job) -> Checkpoints:
        """Those whose files are still there: a run keeps the last few."""
        noted = (job.result or {}).get("checkpoints") or await self._noted(job)
        if not noted:
            return []
        folder = Plan.model_validate(job.request).run_folder
        stored = {path.rpartition("/")[0] for path in await self._storage.find(folder)}
        return [checkpoint for checkpoint in noted if checkpoint["path"] in stored]

    async def _noted(self, job: Job) -> Checkpoints:
        found: Checkpoints = []
        last = -1
        while page := await self._items.page(job.id, after=last, failed=False):
            found += [item.result for item in page if item.result is not None]
            last = page[-1].item
        return found


def _allocated(job: Job) -> Mapping[str, Any]:
    resources = Plan.model_validate(job.request).resources
    return {
        "device": "cuda" if resources.gpus_per_worker > 0 else "cpu",
        **resources.model_dump(mode="json", exclude_none=True),
    }
