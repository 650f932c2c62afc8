"""PostTraining: supervised fine-tuning and preference optimisation, as jobs."""

from __future__ import annotations

from fastapi import Request

from stack.api.files import base_url
from stack.api.routing import api_router
from stack.context import CurrentStack
from stack.files.uris import content_url
from stack.schemas.post_training import (
    CancelTrainingJobRequest,
    Checkpoint,
    ListPostTrainingJobsResponse,
    PostTrainingJob,
    PostTrainingJobArtifactsResponse,
    PostTrainingJobStatusResponse,
    PreferenceOptimizeRequest,
    SupervisedFineTuneRequest,
)

router = api_router("PostTraining (Coming Soon)")


@router.post("/v1/post-training/supervised-fine-tune")
async def supervised_fine_tune(request: SupervisedFineTuneRequest, stack: CurrentStack) -> PostTrainingJob:
    """Run supervised fine-tuning of a model, as a job. Its model gets the job's id."""
    return await stack.training.supervised_fine_tune(request)


@router.post("/v1/post-training/preference-optimize")
async def preference_optimize(request: PreferenceOptimizeRequest, stack: CurrentStack) -> PostTrainingJob:
    """Run preference optimization (DPO) of a model, as a job. Its model gets the job's id."""
    return await stack.training.preference_optimize(request)


@router.get("/v1/post-training/jobs")
async def list_training_jobs(stack: CurrentStack) -> ListPostTrainingJobsResponse:
    """All training jobs, the newest first."""
    return ListPostTrainingJobsResponse(data=await stack.training.list())


@router.get("/v1/post-training/job/status")
async def get_training_job_status(job_uuid: str, stack: CurrentStack) -> PostTrainingJobStatusResponse:
    """The status of a training job, with the checkpoints that are kept."""
    return await stack.training.status(job_uuid)


@router.get("/v1/post-training/job/artifacts")
async def get_training_job_artifacts(
    job_uuid: str, stack: CurrentStack, http: Request
) -> PostTrainingJobArtifactsResponse:
    """What a training job made: checkpoints, the last with the id of its model, pictures and trials."""
    found = await stack.training.artifacts(job_uuid)
    base = base_url(http, stack)
    return found.model_copy(update={"checkpoints": [_with_url(entry, base) for entry in found.checkpoints]})


@router.post("/v1/post-training/job/cancel")
async def cancel_training_job(request: CancelTrainingJobRequest, stack: CurrentStack) -> None:
    """Cancel a training job. One in progress stops within seconds; its checkpoints stay."""
    await stack.training.cancel(request.job_uuid)


def _with_url(artifact: Checkpoint, base: str) -> Checkpoint:
    """For an uploaded file, where its contents are read."""
    bucket, _, key = str(artifact.get("uri", "")).removeprefix("files://").partition("/")
    return artifact | {"url": content_url(base, bucket, key)} if key else artifact
