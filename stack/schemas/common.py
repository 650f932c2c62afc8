"""What wire types share: their base class, times, free-form JSON, and the types of no API group."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import TypeAliasType

JsonObject = dict[str, JsonValue]
"""A free-form object: comes back exactly as it went in, None included; NaN and infinities are refused."""


def _assume_utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


DateTime = Annotated[datetime, AfterValidator(_assume_utc)]
"""RFC 3339, always with an offset; a time without one is taken as UTC."""


def well_formed(value: Any) -> Any:
    """JSON data with every half of a surrogate pair, which is no character, replaced."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {well_formed(key): well_formed(item) for key, item in value.items()}
    return [well_formed(item) for item in value] if isinstance(value, list) else value


def _check_identifier(identifier: str) -> str:
    if not identifier.strip() or not identifier.isprintable():
        raise ValueError("an identifier has at least one visible character and no control characters")
    return identifier


Identifier = Annotated[str, AfterValidator(_check_identifier)]
"""The name under which a caller registers something."""


def _is_none(value: object) -> bool:
    return value is None


def _model_fields(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in a model's core schema, which may be wrapped by validators."""
    while schema["type"] != "model-fields":
        if "schema" not in schema:
            return {}
        schema = schema["schema"]
    fields: dict[str, Any] = schema["fields"]
    return fields


def _drop_null(field: dict[str, Any]) -> None:
    """Turn `anyOf: [T, null]` into T, in place."""
    options = [option for option in field.pop("anyOf", []) if option != {"type": "null"}]
    if len(options) == 1:
        for key, value in options[0].items():
            field.setdefault(key, value)
    elif options:
        field["anyOf"] = options


class Schema(BaseModel):
    """Base of all wire types: no unknown keys, no NaN or infinity.

    An optional field (`x: T | None = None`) may be absent or null in what comes in and is left out of what
    goes out. The rule is part of each type, so it holds however a value is serialised; do not pass
    `exclude_none`, which would also drop a required field whose value is None. None inside free-form
    objects is always kept.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        schema = handler(source)
        for field in _model_fields(handler.resolve_ref_schema(schema)).values():
            if field["schema"]["type"] == "default" and field["schema"].get("default", ...) is None:
                field["serialization_exclude_if"] = _is_none
        return schema

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Declare what is written: optional fields without null, constants as required, no made-up titles."""
        declared = handler(schema)
        body = handler.resolve_ref_schema(declared)
        constants = []
        for name, field in body.get("properties", {}).items():
            field.pop("title", None)
            if "default" in field and field["default"] is None:
                del field["default"]
                _drop_null(field)
            elif "const" in field:
                constants.append(name)
        if constants:
            body["required"] = [
                *constants,
                *(name for name in body.get("required", []) if name not in constants),
            ]
        return declared


class URL(Schema):
    uri: str


class Error(Schema):
    """Error response from the API. Roughly follows RFC 7807."""

    status: int = Field(description="HTTP status code")
    title: str = Field(description="A short summary that is the same for all errors of a type")
    detail: str = Field(description="What went wrong here and what to change")
    instance: str | None = Field(None, description="A URL with more about this occurrence")


JobStatus = TypeAliasType(
    "JobStatus", Literal["completed", "in_progress", "failed", "scheduled", "cancelled"]
)
