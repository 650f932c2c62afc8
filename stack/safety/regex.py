"""regex: patterns of the caller's own, matched by RE2, which cannot backtrack."""

from __future__ import annotations

from typing import cast

from pydantic import Field

from stack.safety.provider import Call, ShieldParams, ShieldProvider, all_texts
from stack.schemas.safety import SafetyViolation, ViolationLevel
from stack.schemas.shields import Shield

_SEVERITY: dict[ViolationLevel, int] = {"info": 0, "warn": 1, "error": 2}


class Rule(ShieldParams):
    name: str | None = Field(None, max_length=100, description="What metadata calls it. Default: its place")
    pattern: str = Field(min_length=1, max_length=1000, description="In RE2's syntax")
    level: ViolationLevel = "error"
    message: str | None = Field(None, max_length=1000, description="What to tell the user")


class RegexParams(ShieldParams):
    patterns: list[Rule] = Field(min_length=1, max_length=100)
    ignore_case: bool = False


class Regex(ShieldProvider[RegexParams]):
    params = RegexParams

    async def check(self, shield: Shield, params: RegexParams) -> None:
        await self._find(params, [])

    async def run(self, call: Call[RegexParams]) -> SafetyViolation | None:
        """The most severe pattern that is found anywhere decides on level and message."""
        rules = call.params.patterns
        found = await self._find(call.params, all_texts(call.messages))
        if not found:
            return None
        worst = max((rules[number] for number in found), key=lambda rule: _SEVERITY[rule.level])
        return SafetyViolation(
            violation_level=worst.level,
            user_message=worst.message or "This contains something that is not allowed here.",
            metadata={
                "violation_type": "regex",
                "patterns": [rules[number].name or str(number) for number in found],
            },
        )

    async def _find(self, params: RegexParams, texts: list[str]) -> list[int]:
        patterns = [rule.pattern for rule in params.patterns]
        found = await self._scans.call("stack.safety.matching:find", texts, patterns, params.ignore_case)
        return cast("list[int]", found)
