"""Ingest documents into a vector database: `stack.rag.bulk`."""

import sys
from typing import Any

from stack.jobs.context import JobContext
from stack.jobs.runner import main


async def ingest(context: JobContext) -> dict[str, Any]:
    from stack.rag import bulk, workers
    from stack.serve.jobs import job_stack

    async with job_stack(context.settings) as stack:
        return await bulk.ingest(context, stack.storage, workers.load, stack.rag.ingest.store)


if __name__ == "__main__":
    sys.exit(main(ingest, "jobs.ingest"))
