"""basic::equality and basic::subset_of: the answer is the expected one, or has it somewhere."""

from __future__ import annotations

from stack.schemas.common import JsonObject
from stack.scoring.scorer import given, text


def equality(row: JsonObject) -> float:
    """1 if the two are equal, whatever their JSON type."""
    return 1.0 if given(row, "generated_answer") == given(row, "expected_answer") else 0.0


def subset_of(row: JsonObject) -> float:
    """1 if the expected text stands in the generated one."""
    return 1.0 if text(row, "expected_answer") in text(row, "generated_answer") else 0.0
