"""Errors on the wire: whatever goes wrong is answered with the spec's `Error`, in one place."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from stack.errors import BadRequest, StackError, TooLarge

log = logging.getLogger(__name__)

SHOWN_PROBLEMS = 3
SHOWN_VALUE = 60  # characters


def install(app: FastAPI) -> None:
    app.add_exception_handler(StackError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_exception)


def detail_of(error: BaseException) -> str:
    """What a caller may be told. Of an error that is not a StackError: nothing."""
    if isinstance(error, StackError):
        return str(error)
    return "the server failed; its log has the reason under this answer's x-trace-id"


def response_for(error: BaseException) -> Response:
    """The answer to any error. What is the server's fault is logged."""
    if not isinstance(error, StackError):
        log.error("unexpected error", exc_info=error)
        return _response(500, StackError.title, detail_of(error))
    if error.status >= 500:
        log.warning("%s: %s", error.title, error, exc_info=error.__cause__)
    headers = {}
    if (seconds := getattr(error, "retry_after_s", None)) is not None:
        headers["retry-after"] = str(seconds)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return _response(error.status, error.title, str(error), headers)


def _response(status: int, title: str, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    # A lone surrogate in the detail cannot be encoded.
    detail = detail.encode("utf-8", "backslashreplace").decode()
    return JSONResponse({"status": status, "title": title, "detail": detail}, status, headers)


async def _on_error(request: Request, error: Exception) -> Response:
    return response_for(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    detail = str(error.detail)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if status == 404:
        detail = f"there is no {request.url.path}; GET /v1/inspect/routes lists what there is"
    elif status == 405:
        allowed = ", ".join(_methods(request.app.router.routes, request.scope))
        detail, headers["allow"] = f"{request.url.path} takes {allowed}, not {request.method}", allowed
    # Python 3.11 has an older phrase for 413.
    title = TooLarge.title if status == TooLarge.status else HTTPStatus(status).phrase
    return _response(status, title, detail, headers)


def _methods(routes: Sequence[BaseRoute], scope: Scope) -> list[str]:
    """What the path can be asked with. Starlette's own answer names only the first of several routes."""
    methods: set[str] = set()
    for route in routes:
        if route.matches(scope)[0] is Match.PARTIAL:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return response_for(BadRequest(_describe(error, request.headers.get("content-type"))))


def _describe(error: RequestValidationError, content_type: str | None) -> str:
    if isinstance(error.body, bytes):
        sent = f"content-type {content_type!r}" if content_type else "no content-type"
        return f"the body is JSON only with the header content-type: application/json (it came with {sent})"
    problems = [_problem(problem, error.body) for problem in error.errors()]
    more = len(problems) - SHOWN_PROBLEMS
    return "; ".join(problems[:SHOWN_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")


def _problem(problem: Mapping[str, Any], body: Any) -> str:
    """`field: what is expected, not value`."""
    place, *location = problem["loc"]
    where = _path(location, body) if place == "body" else ".".join(map(str, location))
    kind, message = problem["type"], str(problem["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if kind == "missing":
        return f"{where}: is required" if where else "a JSON body is required"
    if kind == "extra_forbidden":
        return f"{where}: there is no such field"
    where = f"{where}: " if where else "the body: "
    return f"{where}{message}, not {shown(problem['input'])}"


def _path(location: Sequence[str | int], body: Any) -> str:
    """The field as the caller wrote it: pydantic also names the union member that it tried."""
    parts, value = [], body
    for number, part in enumerate(location):
        if isinstance(value, dict) and (part in value or number == len(location) - 1):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            continue
        parts.append(str(part))
    return ".".join(parts)


def shown(value: Any) -> str:
    """A value as JSON, short enough for a message."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= SHOWN_VALUE else text[:SHOWN_VALUE] + "…"
