"""Answer many items with a model: `stack.batch.job`."""

import sys
from functools import partial
from typing import Any

from stack.jobs.context import JobContext
from stack.jobs.runner import main


async def batch(context: JobContext) -> dict[str, Any]:
    from stack.batch import job
    from stack.batch.answers import answering
    from stack.serve.jobs import job_stack, worker_stack

    async with job_stack(context.settings):
        asked = job.Batch.model_validate(context.job.request).asked
        return await job.run(context, partial(answering, worker_stack, asked))


if __name__ == "__main__":
    sys.exit(main(batch, "jobs.batch"))
