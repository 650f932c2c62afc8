"""The page at /ui: the files of `stack/ui` as they are. Nothing is built, nothing is from elsewhere."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from stack.api.routing import api_router
from stack.errors import NotFound

router = api_router("UI")

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class _File(NamedTuple):
    content: bytes
    headers: dict[str, str]


def _read(path: Path) -> _File:
    content = path.read_bytes()
    headers = {
        "content-type": f"{_TYPES[path.suffix]}; charset=utf-8",
        "content-security-policy": _POLICY,
        "x-content-type-options": "nosniff",
        "cache-control": "no-cache",  # asked for again, and mostly answered with 304
        "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
    }
    return _File(content, headers)


_FILES = {path.name: _read(path) for path in (Path(__file__).parents[1] / "ui").iterdir()}


@router.get("/ui", include_in_schema=False)
async def page(request: Request) -> Response:
    return await file("index.html", request)


@router.get("/ui/{name}", include_in_schema=False)
async def file(name: str, request: Request) -> Response:
    if name not in _FILES:
        raise NotFound("file", name)
    content, headers = _FILES[name]
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers)
