"""Personal data is found by its form and check digits, and little else is taken for it."""

from __future__ import annotations

import time

import pytest

from stack.errors import BadRequest, TooLarge
from stack.safety.personal_data import count
from stack.safety.pii import ENTITIES
from stack.safety.shields import Shields
from stack.schemas.content import TextContentItem, ToolCall
from stack.schemas.messages import CompletionMessage, SystemMessage, ToolResponseMessage, UserMessage

FOUND = {
    "write to jane.doe+news@mail.example.org, please": "email",
    "<jane@example.co.uk>": "email",
    "+44 20 7946 0958": "phone",
    "+4930901820": "phone",
    "call (212) 555-0123 now": "phone",
    "tel: 415-555-2671.": "phone",
    "+1 555 123 4567": "phone",
    "é415-555-2671é": "phone",
    "card 4111111111111111 exp 12/27": "credit_card",
    "4111-1111-1111-1111 12/27 123": "credit_card",
    "3782 822463 10005": "credit_card",
    "room 1234 4111 1111 1111 1111": "credit_card",
    "5555555555554444": "credit_card",
    "pay DE89 3704 0044 0532 0130 00 EUR 5": "iban",
    "GB29NWBK60161331926819": "iban",
    "BE68 5390 0754 7034 PAID NOW": "iban",
    "ssn 536-90-4399": "us_ssn",
    "from 8.8.8.8 to": "ip_address",
    "2001:4860:4860::8888": "ip_address",
    "AKIAIOSFODNN7EXAMPLE": "api_key",
    "key=sk-proj-abcDEF1234567890abcdefGHIJ": "api_key",
    "ghp_" + "a1B2" * 9: "api_key",
    "-----BEGIN RSA PRIVATE KEY-----": "api_key",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9": "api_key",
}

NOT_FOUND = [
    "Plain prose, of no interest to anybody.",
    "ISBN 978-3-16-148410-0, ISBN-10 3-16-148410-0",
    "created 1700000000, updated 1700000000123, 1700000000123456",
    "2024-01-02 12:30:45 and 2024-01-02T12:30:45.123456+01:00",
    "version 1.2.3.4, v10.0.19041.1, pytest==9.2.0",
    "192.168.0.1 and 127.0.0.1 and 0.1.2.3",
    "std::vector<int> a::b, 00:1A:2B:3C:4D:5E",
    "icon@2x.png, git@github.com:org/repo.git, @everyone",
    "sk-learn-something-very-long-2, task-oriented-dialogue-2024",
    "1234 5678 9012 3456, 4111 1111 1111 1112",
    "1,234,567.89 or $1,000.00-2,000.00 or 5,000-10,000 m",
    "3.14159265358979, 1.618 033 988 749 894, 0.4111111111111111",
    "550e8400-e29b-41d4-a716-446655440000",
    "2010 2011 2012 2013 2014, 100 200 300 4000",
    "000-12-3456, 666-12-3456, 900-12-3456",
    "+10000000 points, 10.1000/182",
    "DE89 3704 0044 0532 0130 01",
    "commit 4111111111111111abcdef, 12345678901234567890123",
]

HOSTILE = [
    "a",
    "1",
    "1 ",
    "1111 ",
    "4111 1111 1111 1111 ",
    "a@",
    "+1 ",
    "1-",
    "(",
    "AA11 AAAA ",
    "1.",
    "2001:",
]
HOSTILE += ["eyJ", "-----BEGIN ", "sk-", "\0", "é", "\n", "12 34 56 78 ", "212-555-0123 ", "((("]


def found(text: str, region: str = "US") -> dict[str, int]:
    return count([text], ENTITIES, region)


@pytest.mark.parametrize("text", FOUND, ids=str)
def test_finds(text: str) -> None:
    assert found(text) == {FOUND[text]: 1}
    assert found(f"It is so:\n{text}\nand that is all") == {FOUND[text]: 1}


@pytest.mark.parametrize("text", NOT_FOUND, ids=str)
def test_takes_nothing_else_for_it(text: str) -> None:
    assert found(text) == {}


def test_neighbours_and_regions() -> None:
    assert found("212-555-0123 415-555-2671 +44 20 7946 0958 +49 30 901820") == {"phone": 4}
    german = "030 901820, 040 123456 und 2024-01-02 12:30"
    assert (found(german), found(german, "DE")) == ({}, {"phone": 2})


@pytest.mark.parametrize("piece", HOSTILE, ids=repr)
def test_time_is_linear(piece: str) -> None:
    """100 kB take a tenth of the time that ten times as much has, and the whole is bounded by it."""
    started = time.process_time()
    found(piece * (100_000 // len(piece)))
    assert time.process_time() - started < 2.0


async def test_every_text_of_every_message_is_read(shields: Shields) -> None:
    for message in (
        UserMessage(content="my mail: a@example.org"),
        UserMessage(content="see", context="a@example.org"),
        UserMessage(content=[TextContentItem(text="a@exa"), TextContentItem(text="mple.org")]),
        SystemMessage(content=TextContentItem(text="a@example.org")),
        ToolResponseMessage(call_id="1", content="a@example.org"),
        CompletionMessage(content="a@example.org", stop_reason="end_of_turn"),
        CompletionMessage(
            content="",
            stop_reason="end_of_turn",
            tool_calls=[ToolCall(call_id="1", tool_name="send", arguments={"to": ["a@example.org"]})],
        ),
        CompletionMessage(
            content="",
            stop_reason="end_of_turn",
            tool_calls=[
                ToolCall(
                    call_id="1", tool_name="send", arguments={}, arguments_json='{"x": {"y": "a@b.org"}}'
                )
            ],
        ),
    ):
        violation = await shields.run("pii", [UserMessage(content="hi"), message], {})
        assert violation is not None, message
        assert violation.violation_level == "error"
        assert violation.metadata == {"violation_type": "email", "entities": {"email": 1}, "shield_id": "pii"}
        assert "example" not in violation.model_dump_json()


async def test_params_switch_kinds_and_level(shields: Shields) -> None:
    messages = [UserMessage(content="a@example.org, +44 20 7946 0958, 8.8.8.8")]
    violation = await shields.run("pii", messages, {"entities": ["phone"], "level": "info"})
    assert violation is not None
    assert (violation.violation_level, violation.metadata["entities"]) == ("info", {"phone": 1})
    assert violation.user_message is not None
    assert "a phone number" in violation.user_message
    assert await shields.run("pii", messages, {"entities": ["iban"]}) is None
    with pytest.raises(BadRequest, match=r"params\.entities\.0: input should be 'email', 'phone'"):
        await shields.run("pii", messages, {"entities": ["names"]})
    with pytest.raises(BadRequest, match=r"params\.region"):
        await shields.run("pii", messages, {"region": "usa"})


async def test_large_texts(shields: Shields) -> None:
    """The last characters of ten million are read; more is refused, never passed."""
    prose = "It was the best of times, it was the worst of times. " * 200_000
    started = time.monotonic()
    assert await shields.run("pii", [UserMessage(content=prose[:9_000_000])], {}) is None
    assert await shields.run("pii", [UserMessage(content=prose[:9_999_900] + " a@b.org")], {}) is not None
    assert time.monotonic() - started < 20
    with pytest.raises(TooLarge, match="this shield reads up to 10,000,000"):
        await shields.run("pii", [UserMessage(content=prose[:5_000_001])] * 2, {})
