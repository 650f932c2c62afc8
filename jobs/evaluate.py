"""Run a benchmark on a model or an agent: `stack.evaluation.evaluate`."""

import sys
from functools import partial
from typing import Any

from stack.jobs.context import JobContext
from stack.jobs.runner import main


async def evaluate(context: JobContext) -> dict[str, Any]:
    from stack.evaluation import evaluate
    from stack.evaluation.candidates import agent_of
    from stack.serve.jobs import job_stack, worker_stack

    async with job_stack(context.settings) as stack:
        asked = evaluate.Evaluation.model_validate(context.job.request)
        async with agent_of(stack.agents, asked.candidate, context.job) as agent_id:
            answers = partial(evaluate.evaluating, worker_stack, asked.candidate, asked.scoring, agent_id)
            return await evaluate.run(context, stack.storage, stack.scoring, answers)


if __name__ == "__main__":
    sys.exit(main(evaluate, "jobs.evaluate"))
