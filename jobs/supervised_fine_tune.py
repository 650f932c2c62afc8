"""Train a model: `stack.training.job`."""

import sys
from typing import Any

from stack.jobs.context import JobContext
from stack.jobs.runner import main


async def train(context: JobContext) -> dict[str, Any]:
    from stack.serve.jobs import job_stack
    from stack.training import job

    async with job_stack(context.settings) as stack:
        return await job.run(context, stack.storage, stack.models, stack.uploads)


if __name__ == "__main__":
    sys.exit(main(train, "jobs.supervised_fine_tune"))
