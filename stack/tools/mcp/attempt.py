"""What became of a request's HTTP: the client of the package mcp tells little of it."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass, field

from stack.errors import StackError, Unauthorized, UpstreamError


def _future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


@dataclass(slots=True)
class Attempt:
    """Written by the transport in whatever task it runs: the package hands contexts on to its tasks."""

    status: int | None = None  # of the HTTP answer
    failure: StackError | None = None
    delivered: bool = False  # the server may have acted on it
    failed: asyncio.Future[None] = field(default_factory=_future)

    def fail(self, error: StackError) -> None:
        self.failure = self.failure or error
        if not self.failed.done():
            self.failed.set_result(None)

    def error(self, name: str) -> StackError | None:
        """Why there is no MCP answer, as far as HTTP tells."""
        if self.failure is not None:
            return self.failure
        if self.status in (401, 403):
            return Unauthorized(
                f"{name} answers {self.status}: send its key in the header X-LlamaStack-Provider-Data: "
                '{"mcp_headers": {"<the endpoint>": {"Authorization": "Bearer …"}}}'
            )
        if self.status is not None and self.status >= 400:
            return UpstreamError(f"{name} answers {self.status}")
        return None


current: ContextVar[Attempt | None] = ContextVar("mcp_attempt", default=None)
"""The attempt that the running code belongs to."""


def named(endpoint: str) -> str:
    """An endpoint for messages: queries often carry keys."""
    return repr(endpoint.partition("?")[0].partition("#")[0][:200])
