"""A child that is bounded in time, memory and stack, and the process that it protects."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator

import pytest

from stack.bounded import BoundedChild, Exceeded, Limits, Refused

HERE = "tests.test_bounded"


@pytest.fixture
def child() -> Iterator[BoundedChild]:
    bounded = BoundedChild(Limits(cpu_s=0.3, wall_s=3.0, memory_bytes=256 << 20), ["math"])
    yield bounded
    bounded.close()


def spin() -> None:
    while True:
        math.sqrt(2)


def sleep() -> None:
    time.sleep(60)


def hoard() -> int:
    return len([bytes(1 << 20) for _ in range(1000)])


def dive() -> None:
    json.loads("[" * 100_000)


def refuse() -> None:
    raise ValueError("no, because")


def chatter() -> str:
    print("not a reply")  # noqa: T201
    return "ü\n"


def test_a_call_answers(child: BoundedChild) -> None:
    assert child.call("math:factorial", 20) == math.factorial(20)
    assert child.call(f"{HERE}:chatter") == "ü\n"


def test_the_child_has_none_of_the_keys(child: BoundedChild, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACK_HF_TOKEN", "hf_secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert child.call("os:getenv", "STACK_HF_TOKEN") is None
    assert child.call("os:getenv", "AWS_SECRET_ACCESS_KEY") is None
    assert child.call("os:getenv", "PATH")


def test_a_refusal_is_told(child: BoundedChild) -> None:
    with pytest.raises(Refused, match="no, because"):
        child.call(f"{HERE}:refuse")
    with pytest.raises(RuntimeError, match="TypeError"):
        child.call("math:factorial", 1, 2)


@pytest.mark.parametrize(
    ("function", "limit"), [("spin", "time"), ("sleep", "time"), ("hoard", "memory"), ("dive", "stack")]
)
def test_a_limit_ends_the_call_and_the_next_one_is_answered(
    child: BoundedChild, function: str, limit: str
) -> None:
    with pytest.raises(Exceeded) as caught:
        child.call(f"{HERE}:{function}")
    assert caught.value.limit == limit
    assert child.call("math:factorial", 3) == 6


def test_the_child_ends_with_its_parent() -> None:
    child = BoundedChild(Limits(cpu_s=0.3, wall_s=3.0, memory_bytes=256 << 20), [])
    pid = child.call("os:getpid")
    child.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
