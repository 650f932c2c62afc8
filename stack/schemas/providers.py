"""Providers: which implementations of each API there are."""

from stack.schemas.common import JsonObject, Schema


class ProviderInfo(Schema):
    api: str
    provider_id: str
    provider_type: str
    config: JsonObject


class ListProvidersResponse(Schema):
    data: list[ProviderInfo]
