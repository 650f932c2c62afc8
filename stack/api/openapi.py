"""The OpenAPI document: what FastAPI declares, with the spec's error answers in place of FastAPI's."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from stack.schemas.agents import AgentTurnResponseStreamChunk
from stack.schemas.common import Error
from stack.schemas.inference import ChatCompletionResponseStreamChunk, CompletionResponseStreamChunk

STREAMED = (AgentTurnResponseStreamChunk, ChatCompletionResponseStreamChunk, CompletionResponseStreamChunk)
"""Types that are only ever sent as events: FastAPI does not find them by itself."""

_REFERENCE = "#/components/schemas/{model}"
_ERRORS = {
    "400": ("BadRequest400", "The request was invalid or malformed"),
    "429": ("TooManyRequests429", "The client has sent too many requests in a given amount of time"),
    "500": ("InternalServerError500", "The server encountered an unexpected error"),
    "default": ("DefaultError", "An unexpected error occurred"),
}
_FASTAPI = ("HTTPValidationError", "ValidationError")  # never answered: validation is a 400


def events_of(chunk: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """`responses` of an operation that may also answer with a stream of `chunk`."""
    assert chunk in STREAMED
    schema = {"$ref": _REFERENCE.format(model=chunk.__name__)}
    return {200: {"content": {"text/event-stream": {"schema": schema}}}}


def document(app: FastAPI) -> dict[str, Any]:
    """Made once, on the first request for it."""
    if app.openapi_schema is None:
        app.openapi_schema = _build(app)
    return app.openapi_schema


def _build(app: FastAPI) -> dict[str, Any]:
    content = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.router.routes,
        separate_input_output_schemas=False,
    )
    for operations in content["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"] |= {
                status: {"$ref": f"#/components/responses/{name}"} for status, (name, _) in _ERRORS.items()
            }
    components = content.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in _FASTAPI:
        schemas.pop(name, None)
    _, found = models_json_schema(
        [(model, "validation") for model in (Error, *STREAMED)], ref_template=_REFERENCE
    )
    schemas |= found["$defs"]
    reference = {"application/json": {"schema": {"$ref": _REFERENCE.format(model="Error")}}}
    components["responses"] = {
        name: {"description": description, "content": reference} for name, description in _ERRORS.values()
    }
    return content
