"""A small model as a judge: it says nothing of worth, but always something that is a score."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stack.engine.base import NoMeter
from stack.engine.text.model import TextModel
from stack.engine.text.open import open_text_model
from stack.models.args import ModelArgs
from stack.scoring.judge import DEFAULT_PATTERNS, DEFAULT_TEMPLATE, Judge
from stack.scoring.template import Template
from stack.scoring.workers import Workers


@pytest.fixture(scope="module")
def model(smollm2_dir: Path) -> Iterator[TextModel]:
    args = ModelArgs(model_id="judge", source=str(smollm2_dir), max_batch=4)
    model = open_text_model(args, smollm2_dir, NoMeter())
    yield model
    model.close()


@pytest.mark.parametrize(
    ("template", "patterns"),
    [
        (DEFAULT_TEMPLATE, DEFAULT_PATTERNS),
        ("Is {generated_answer} right? Answer A for yes, B for no.", ("(A|B)",)),
    ],
)
async def test_every_answer_has_a_score(
    workers: Workers, model: TextModel, template: str, patterns: tuple[str, ...]
) -> None:
    rows: list[Any] = [
        {"input_query": "2 + 2?", "expected_answer": "4", "generated_answer": each} for each in ("4", "five")
    ]
    grammar = await workers.call("stack.scoring.patterns:check", patterns, "patterns")
    judge = Judge(workers, "judge", model, Template(template), patterns, grammar)  # type: ignore[arg-type]
    scored = await judge.score_rows(rows)
    for row in scored:
        assert row["score"] in ("A", "B", *range(11)), row
