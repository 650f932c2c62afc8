"""Train a model: `stack.training.job`."""

import argparse
import sys
from typing import Any

from stack.jobs.context import JobContext
from stack.jobs.runner import run


async def train(context: JobContext) -> dict[str, Any]:
    from stack.serve.jobs import job_stack
    from stack.training import job

    async with job_stack(context.settings) as stack:
        return await job.run(context, stack.storage, stack.models, stack.uploads)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Work on a training job that was submitted, until it ends.",
        epilog="Example: python -m jobs.supervised_fine_tune --job-id my-sft",
    )
    parser.add_argument("--job-id", required=True, help="as `stack jobs list` shows it")
    return run(train, parser.parse_args().job_id)


if __name__ == "__main__":
    sys.exit(main())
