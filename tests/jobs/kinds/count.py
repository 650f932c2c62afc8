"""A job that finishes its items one by one, and misbehaves as its request asks. Run as an entry point."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from stack.errors import BadRequest, NotReady
from stack.jobs.context import JobContext
from stack.jobs.runner import run

log = logging.getLogger("stack.tests")


async def count(context: JobContext) -> dict[str, Any]:
    """Each item leaves a line in the file before it is noted, as a real effect would be stored."""
    request = context.job.request
    done = {item.item async for item in context.finished_items()}
    log.info("attempt %d: %d items are there", context.job.attempt, len(done))
    behave(request, context)
    if "phase" in request:
        context.progress(phase=request["phase"])
    for item in range(request["items"]):
        if item not in done:
            append(request["file"], item)
            await context.finish_items({item: {"attempt": context.job.attempt}})
            await asyncio.sleep(request.get("pause_s", 0.0))
        context.progress(done=item + 1, total=request["items"])
        if item == request.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)
    return {"items": request["items"]}


def append(path: str, item: int) -> None:
    with Path(path).open("a") as file:
        file.write(f"{item}\n")


def behave(request: dict[str, Any], context: JobContext) -> None:
    match request.get("trouble"):
        case "deaf":  # neither cancellation nor SIGTERM reaches it
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        case "bad":
            raise BadRequest("the file has no rows: add some")
        case "bug":
            raise KeyError("/secret/path")
        case "busy" if context.job.attempt < 3:
            raise NotReady("the model is not ready")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--job-id", required=True)
    sys.exit(run(count, parser.parse_args().job_id))
