"""What all routers share: strict JSON bodies, and the error answers that the spec declares."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException

_PLACE = re.compile(r"(?P<problem>.*) at line (?P<line>\d+) column (?P<column>\d+)\Z")
_SHOWN = 20  # characters of the body around a problem


class JSONRoute(APIRoute):
    """Reads bodies with pydantic's parser: no NaN, no lone surrogates, a bounded depth, and faster."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JSONRequest(request.scope, request.receive))

        return handle


class _JSONRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        try:
            return from_json(body, allow_inf_nan=False)
        except ValueError as error:
            # FastAPI would replace any other kind of error with a message of its own.
            raise HTTPException(400, _explain(str(error), body)) from None


def _explain(message: str, body: bytes) -> str:
    found = _PLACE.match(message)
    if found is None:
        return f"the body is not JSON: {message}"
    if found["problem"] == "recursion limit exceeded":
        return "the body is nested too deep: at most 200 levels are read"
    line = body.split(b"\n")[int(found["line"]) - 1]
    start = max(0, int(found["column"]) - _SHOWN)
    near = line[start : start + 2 * _SHOWN].decode("utf-8", "replace")
    hint = ""
    if "NaN" in near or "Infinity" in near:
        hint = " (JSON has no NaN and no Infinity)"
    elif "hex escape" in message or "unicode" in message:
        hint = " (half of a surrogate pair is not a character)"
    return f"the body is not JSON{hint}: {message}, near {near!r}"


def api_router(tag: str) -> APIRouter:
    """A router of one API group; `tag` is the group's in the spec."""
    return APIRouter(tags=[tag], route_class=JSONRoute)
