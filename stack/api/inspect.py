"""Inspect: what this server is and what it serves."""

from __future__ import annotations

from fastapi import Request

from stack import __version__
from stack.api.routing import api_router
from stack.providers import provider_types
from stack.schemas.inspect import HealthInfo, ListRoutesResponse, RouteInfo, VersionInfo

router = api_router("Inspect")


@router.get("/v1/health")
async def health() -> HealthInfo:
    """Answers while the server can answer at all."""
    return HealthInfo(status="OK")


@router.get("/v1/version")
async def version() -> VersionInfo:
    """The server's version."""
    return VersionInfo(version=__version__)


@router.get("/v1/inspect/routes")
async def list_routes(request: Request) -> ListRoutesResponse:
    """Every operation that is served, with the types of the providers behind it."""
    paths = request.app.openapi()["paths"]
    return ListRoutesResponse(
        data=[
            RouteInfo(
                route=path, method=method.upper(), provider_types=provider_types(_api(operation["tags"][0]))
            )
            for path in sorted(paths)
            for method, operation in paths[path].items()
        ]
    )


def _api(tag: str) -> str:
    """The API whose providers do a group's work: models are what the inference providers serve."""
    return {"Models": "inference"}.get(tag, tag.lower())
