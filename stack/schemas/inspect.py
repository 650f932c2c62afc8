"""Inspect: what this server is and what it serves."""

from stack.schemas.common import Schema


class HealthInfo(Schema):
    status: str


class VersionInfo(Schema):
    version: str


class RouteInfo(Schema):
    route: str
    method: str
    provider_types: list[str]


class ListRoutesResponse(Schema):
    data: list[RouteInfo]
