"""Safety: running a shield over messages."""

from typing import Literal

from pydantic import Field
from typing_extensions import TypeAliasType

from stack.schemas.common import JsonObject, Schema
from stack.schemas.messages import Message

ViolationLevel = TypeAliasType("ViolationLevel", Literal["info", "warn", "error"])


class SafetyViolation(Schema):
    violation_level: ViolationLevel
    user_message: str | None = Field(None, description="What to tell the user")
    metadata: JsonObject


class RunShieldRequest(Schema):
    shield_id: str
    messages: list[Message]
    params: JsonObject


class RunShieldResponse(Schema):
    violation: SafetyViolation | None = Field(None, description="Absent if the shield found nothing")
