"""Shields: the registry of checks on what goes into and comes out of models."""

from typing import Literal

from stack.schemas.common import Identifier, JsonObject, Schema


class Shield(Schema):
    """A safety shield resource that can be used to check content."""

    identifier: str
    provider_resource_id: str
    provider_id: str
    type: Literal["shield"] = "shield"
    params: JsonObject | None = None


class RegisterShieldRequest(Schema):
    shield_id: Identifier
    provider_shield_id: str | None = None
    provider_id: str | None = None
    params: JsonObject | None = None


class ListShieldsResponse(Schema):
    data: list[Shield]
