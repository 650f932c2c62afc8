"""pii: personal data and secrets, found by their form and their check digits."""

from __future__ import annotations

from typing import Literal, cast, get_args

from pydantic import Field

from stack.safety.provider import Call, ShieldParams, ShieldProvider, all_texts
from stack.schemas.safety import SafetyViolation, ViolationLevel

Entity = Literal["email", "phone", "credit_card", "iban", "us_ssn", "ip_address", "api_key"]
ENTITIES: tuple[Entity, ...] = get_args(Entity)

_NAMES: dict[Entity, str] = {
    "email": "an e-mail address",
    "phone": "a phone number",
    "credit_card": "a card number",
    "iban": "a bank account number",
    "us_ssn": "a social security number",
    "ip_address": "an IP address",
    "api_key": "a key or token",
}


class PiiParams(ShieldParams):
    entities: list[Entity] = Field(list(ENTITIES), min_length=1, description="What is looked for")
    level: ViolationLevel = "error"
    region: str = Field(
        "US", pattern="^[A-Z]{2}$", description="The country whose phone numbers need no +, as in ISO 3166"
    )


class Pii(ShieldProvider[PiiParams]):
    params = PiiParams

    async def run(self, call: Call[PiiParams]) -> SafetyViolation | None:
        """Metadata has the kinds that were found and how often, never what was found."""
        params = call.params
        found = cast(
            "dict[Entity, int]",
            await self._scans.call(
                "stack.safety.personal_data:count", all_texts(call.messages), params.entities, params.region
            ),
        )
        if not found:
            return None
        names = ", ".join(_NAMES[entity] for entity in found)
        return SafetyViolation(
            violation_level=params.level,
            user_message=f"This seems to contain {names}. Leave it out or mask it, and try again.",
            metadata={"violation_type": ",".join(found), "entities": dict(found)},
        )
