"""Score all rows of a dataset: `stack.scoring.job`."""

import sys
from functools import partial
from typing import Any

from stack.jobs.context import JobContext
from stack.jobs.runner import main


async def score(context: JobContext) -> dict[str, Any]:
    from stack.scoring import job
    from stack.serve.jobs import job_stack, worker_stack

    async with job_stack(context.settings) as stack:
        asked = job.DatasetScoring.model_validate(context.job.request)
        return await job.run(context, stack, partial(job.scoring_rows, worker_stack, asked))


if __name__ == "__main__":
    sys.exit(main(score, "jobs.score"))
