"""Generate training data: `stack.synthetic.synthesis`."""

import sys
from functools import partial
from typing import Any

from stack.jobs.context import JobContext
from stack.jobs.runner import main


async def synthesize(context: JobContext) -> dict[str, Any]:
    from stack.serve.jobs import job_stack, worker_stack
    from stack.synthetic import synthesis
    from stack.synthetic.generate import generating

    async with job_stack(context.settings) as stack:
        recipe = synthesis.Synthesis.model_validate(context.job.request).recipe
        answers = partial(generating, worker_stack, recipe)
        return await synthesis.run(context, stack.storage, stack.datasets, answers)


if __name__ == "__main__":
    sys.exit(main(synthesize, "jobs.synthesize"))
