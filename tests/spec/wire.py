"""A transport between llama-stack-client and our wire types, in place of a server."""

import json
import re
from typing import Any

import httpx
from pydantic import BaseModel, TypeAdapter

from tests.spec.compare import load_spec
from tests.spec.test_schemas import TYPES

Answer = BaseModel | list[BaseModel] | None
"""A list is a stream of server-sent events."""


class Wire(httpx.BaseTransport):
    """Checks each request body with our type of the operation, and answers what the test says."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[BaseModel] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        name, operation = _operation(request)
        if "requestBody" in operation:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            body = TypeAdapter(TYPES[schema["$ref"].rpartition("/")[2]]).validate_python(
                json.loads(request.content)
            )
            self.requests.append(body)
        answer = self.answers[name].pop(0)
        if isinstance(answer, list):
            events = "".join(f"data: {chunk.model_dump_json()}\n\n" for chunk in answer)
            return httpx.Response(200, text=events, headers={"content-type": "text/event-stream"})
        text = "null" if answer is None else answer.model_dump_json()
        return httpx.Response(200, text=text, headers={"content-type": "application/json"})


def _operation(request: httpx.Request) -> tuple[str, dict[str, Any]]:
    """The spec's operation for the request; an id may contain slashes, so the longest path that fits."""
    method = request.method.lower()
    fitting = [
        (path.count("/"), path, methods[method])
        for path, methods in load_spec()["paths"].items()
        if method in methods and re.fullmatch(re.sub(r"\{[^}]+\}", ".+", path), request.url.path)
    ]
    assert fitting, f"the spec has no {request.method} {request.url.path}"
    _, path, operation = max(fitting, key=lambda each: each[0])
    return f"{request.method} {path}", operation
