"""Ingest documents into a vector database: `stack.rag.bulk`."""

import argparse
import sys
from typing import Any

from stack.jobs.context import JobContext
from stack.jobs.runner import run


async def ingest(context: JobContext) -> dict[str, Any]:
    from stack.rag import bulk, workers
    from stack.serve.jobs import job_stack

    async with job_stack(context.settings) as stack:
        return await bulk.ingest(context, stack.storage, workers.load, stack.rag.ingest.store)


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m jobs.ingest",
        description="Work on a job that was submitted, until it ends.",
        epilog="Example: python -m jobs.ingest --job-id ingest-0123456789ab",
    )
    parser.add_argument("--job-id", required=True, help="as `stack jobs list` shows it")
    return run(ingest, parser.parse_args().job_id)


if __name__ == "__main__":
    sys.exit(main())
