from __future__ import annotations

import time
from typing import Any

import pytest

from stack.errors import BadRequest
from stack.safety.matching import find
from stack.safety.provider import parse_params
from stack.safety.regex import RegexParams
from stack.safety.shields import Shields
from stack.schemas.messages import UserMessage
from stack.schemas.safety import SafetyViolation
from stack.schemas.shields import RegisterShieldRequest


async def register(shields: Shields, **params: Any) -> None:
    request = {"shield_id": "words", "provider_id": "regex", "params": params}
    await shields.register(RegisterShieldRequest.model_validate(request))


async def run(shields: Shields, text: str, **params: Any) -> SafetyViolation | None:
    return await shields.run("words", [UserMessage(content=text)], params)


async def test_patterns(shields: Shields) -> None:
    secret = {"name": "codename", "pattern": r"\bproject (?:ember|flint)\b", "message": "Not that project."}
    await register(shields, patterns=[{"pattern": "draft", "level": "info"}, secret], ignore_case=True)
    assert await run(shields, "nothing of the kind") is None
    draft = await run(shields, "a DRAFT of it")
    assert draft is not None
    assert (draft.violation_level, draft.metadata["patterns"]) == ("info", ["0"])
    both = await run(shields, "the draft of Project Ember")
    assert both is not None
    assert (both.violation_level, both.user_message) == ("error", "Not that project.")
    assert both.metadata == {
        "violation_type": "regex",
        "patterns": ["0", "codename"],
        "shield_id": "words",
    }
    assert await run(shields, "a DRAFT of it", ignore_case=False) is None


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, r"params\.patterns: field required"),
        ({"patterns": []}, r"params\.patterns: list should have at least 1 item"),
        (
            {"patterns": [{"pattern": "a"}, {"pattern": "("}]},
            r"params\.patterns\.1\.pattern: '\(' .*missing \)",
        ),
        ({"patterns": [{"pattern": "(?=a)"}]}, "is not a pattern of RE2"),
        ({"patterns": [{"pattern": r"(a)\1"}]}, "is not a pattern of RE2"),
        ({"patterns": [{"pattern": r"\pL{1,1000}" * 50}]}, "pattern too large"),
        ({"patterns": [{"pattern": "a" * 1001}]}, "at most 1000 characters"),
        ({"patterns": [{"pattern": "a"}] * 101}, "at most 100 items"),
        ({"patterns": [{"pattern": "a", "flags": "i"}]}, r"params\.patterns\.0\.flags: extra inputs"),
        ({"patterns": [{"pattern": "a"}], "words": ["b"]}, "there is no such parameter; there are patterns"),
        ({"patterns": [{"pattern": "a", "level": "fatal"}]}, r"params\.patterns\.0\.level"),
    ],
)
def test_bad_params(params: dict[str, Any], message: str) -> None:
    with pytest.raises((BadRequest, ValueError), match=message):
        find([], [rule.pattern for rule in parse_params(RegexParams, params).patterns], False)


async def test_nothing_backtracks(shields: Shields) -> None:
    patterns = [r"(a+)+$", r"^(a|a)*b", r"(.*)*x", r"(a*)*(a*)*c$"]
    await register(shields, patterns=[{"pattern": pattern} for pattern in patterns])
    started = time.monotonic()
    violation = await run(shields, "a" * 100_000)
    assert time.monotonic() - started < 5
    assert violation is not None
    assert violation.metadata["patterns"] == ["0"]
    assert await run(shields, "a" * 100_000 + "!\0\n") is None


async def test_text_that_is_not_ascii(shields: Shields) -> None:
    await register(shields, patterns=[{"pattern": "^.ß.$"}])
    assert await run(shields, "日ß😀") is not None
    assert await run(shields, "日日ß😀") is None
