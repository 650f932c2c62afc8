"""code-scanner: what bandit has against Python code in messages. Code in other languages is not scanned."""

from __future__ import annotations

from typing import Literal, cast

from pydantic import JsonValue

from stack.safety.provider import Call, ShieldParams, ShieldProvider, all_texts
from stack.schemas.safety import SafetyViolation, ViolationLevel

Degree = Literal["low", "medium", "high"]

_LEVELS: dict[str, ViolationLevel] = {"low": "info", "medium": "warn", "high": "error"}
MAX_CHARS = 1_000_000  # of text; bandit reads 100,000 to 250,000 of code in a second
MAX_ISSUES = 20  # that metadata lists


class CodeScannerParams(ShieldParams):
    min_severity: Degree = "medium"
    min_confidence: Degree = "medium"
    level: ViolationLevel | None = None  # None: as severe as the worst issue is


class CodeScanner(ShieldProvider[CodeScannerParams]):
    params = CodeScannerParams

    async def run(self, call: Call[CodeScannerParams]) -> SafetyViolation | None:
        params = call.params
        issues = cast(
            "list[dict[str, JsonValue]]",
            await self._scans.call(
                "stack.safety.python_code:scan",
                all_texts(call.messages),
                params.min_severity,
                params.min_confidence,
                max_chars=MAX_CHARS,
            ),
        )
        if not issues:
            return None
        listed: list[JsonValue] = [*issues[:MAX_ISSUES]]
        return SafetyViolation(
            violation_level=params.level or _LEVELS[str(issues[0]["severity"])],
            user_message="There are security concerns about the code.",
            metadata={
                "violation_type": ",".join(dict.fromkeys(str(issue["test_id"]) for issue in issues)),
                "issues": listed,
                "issue_count": len(issues),
            },
        )
