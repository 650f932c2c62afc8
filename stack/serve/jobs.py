"""What a job's process works with: a Stack whose models are the live replicas of the running cluster."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import ray

from stack.context import Stack, open_stack
from stack.serve.handles import background_inference, session_name
from stack.settings import Settings, get_settings


@asynccontextmanager
async def worker_stack() -> AsyncGenerator[Stack]:
    """In a process that is connected already: a job's own, or one of Ray Data's workers."""
    async with open_stack(get_settings(), background_inference, session_name()) as stack:
        yield stack


@asynccontextmanager
async def job_stack(settings: Settings) -> AsyncGenerator[Stack]:
    """Connected to the running cluster, at RAY_ADDRESS or on this machine; disconnected at the end."""
    connect = partial(
        ray.init,
        address=os.environ.get("RAY_ADDRESS", "auto"),
        namespace="serve",
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    # In a thread, where Ray cannot take SIGTERM, on which the job is given back.
    await asyncio.to_thread(connect)
    try:
        async with open_stack(settings, background_inference, session_name()) as stack:
            yield stack
    finally:
        await asyncio.to_thread(ray.shutdown)
